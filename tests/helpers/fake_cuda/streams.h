/* Part of fake_cuda.c, which includes it once: streams and what is queued in them. Copies, calls and marks of events
 * happen when somebody waits; a stream that is captured keeps them for a graph instead. */

static void run_to(stream *s, uint64_t mark);

static void run_one(stream *s) {
    op *o = s->head;
    struct timespec now;
    s->head = o->next;
    if (!s->head) s->tail = NULL;
    switch (o->kind) {
    case COPY: memmove(o->to, o->from, o->n); break;
    case FILL: memset(o->to, o->value, o->n); break;
    case CALL: o->call(o->arg); break;
    case WAIT: run_to(o->on, o->mark); break;
    case MARK:
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (o->event) o->event->ms = (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
        break;
    }
    s->done++;
    free(o->staged);
    free(o);
}

static void run_to(stream *s, uint64_t mark) {
    while (s->done < mark && s->head) run_one(s);
}

static void finish_all(void) {
    for (stream *s = streams; s; s = s->next) run_to(s, s->queued);
    for (int i = 0; i < MAX_DEVICES; i++) run_to(&defaults[i], defaults[i].queued);
}

static stream *stream_of(stream *s) { return s ? s : &defaults[current->device]; }

static op *queue(stream *s, kind k) {
    op *o = calloc(1, sizeof *o);
    o->kind = k;
    if (s->capture) {
        if (s->capture->tail) s->capture->tail->next = o; else s->capture->head = o;
        s->capture->tail = o;
        return o;
    }
    if (s->tail) s->tail->next = o; else s->head = o;
    s->tail = o;
    s->queued++;
    return o;
}

PUBLIC int cuStreamCreate(stream **out, unsigned flags) {
    stream *s;
    ENTER_CONTEXT;
    s = calloc(1, sizeof *s);
    s->device = current->device;
    s->next = streams;
    streams = s;
    live_streams++;
    *out = s;
    return leave(OK);
}
PUBLIC int fake_priority(void) { return last_priority; } /* of the stream that was made last with one */
PUBLIC int cuCtxGetStreamPriorityRange(int *least, int *most) { return *least = 0, *most = -5, OK; }
PUBLIC int cuStreamCreateWithPriority(stream **s, unsigned f, int p) { return last_priority = p, cuStreamCreate(s, f); }

PUBLIC int cuStreamDestroy_v2(stream *s) {
    stream **at = &streams;
    ENTER_CONTEXT;
    while (*at && *at != s) at = &(*at)->next;
    if (!*at) return leave(INVALID_HANDLE);
    run_to(s, s->queued);
    *at = s->next;
    /* Events may still name it: it stays, done. */
    live_streams--;
    return leave(OK);
}

PUBLIC int cuStreamSynchronize(stream *s) {
    ENTER_CONTEXT;
    s = stream_of(s);
    if (s->capture) return leave(CAPTURE_INVALID);
    run_to(s, s->queued);
    return leave(OK);
}

PUBLIC int cuCtxSynchronize(void) {
    ENTER_CONTEXT;
    finish_all();
    return leave(OK);
}

PUBLIC int cuStreamQuery(stream *s) {
    ENTER_CONTEXT;
    s = stream_of(s);
    if (!s->head) return leave(OK);
    run_one(s); /* whoever asks again and again comes to an end */
    return leave(NOT_READY);
}

/* For kernels of tests; as in the driver, `call` must not call the driver itself. */
PUBLIC int cuLaunchHostFunc(stream *s, void (*call)(void *), void *arg) {
    op *o;
    ENTER_CONTEXT;
    o = queue(stream_of(s), CALL);
    o->call = call;
    o->arg = arg;
    return leave(OK);
}

/* ---- copies */

static int copy(stream *s, char *to, const char *from, size_t n, const void *staged_from) {
    op *o;
    if (!to || !from) return INVALID_VALUE;
    o = queue(s, COPY);
    o->to = to;
    o->from = from;
    o->n = n;
    if (staged_from && !s->capture) { /* pageable memory is read before the call returns */
        o->staged = malloc(n ? n : 1);
        memcpy(o->staged, staged_from, n);
        o->from = o->staged;
    }
    return OK;
}

PUBLIC int cuMemcpyHtoDAsync_v2(ptr_t to, const void *from, size_t n, stream *s) {
    ENTER_CONTEXT;
    return leave(copy(stream_of(s), device_data(to, n), from, n, find((ptr_t)(uintptr_t)from, n, 1) ? NULL : from));
}

PUBLIC int cuMemcpyDtoHAsync_v2(void *to, ptr_t from, size_t n, stream *s) {
    int status;
    ENTER_CONTEXT;
    s = stream_of(s);
    status = copy(s, to, device_data(from, n), n, NULL);
    /* To pageable memory it returns when it is done. */
    if (!status && !s->capture && !find((ptr_t)(uintptr_t)to, n, 1)) run_to(s, s->queued);
    return leave(status);
}

PUBLIC int cuMemcpyDtoDAsync_v2(ptr_t to, ptr_t from, size_t n, stream *s) {
    ENTER_CONTEXT;
    return leave(copy(stream_of(s), device_data(to, n), device_data(from, n), n, NULL));
}

PUBLIC int cuMemcpyPeerAsync(ptr_t to, context *c, ptr_t from, context *d, size_t n, stream *s) {
    memory *target, *source;
    ENTER_CONTEXT;
    target = find(to, n, 0);
    source = find(from, n, 0);
    if (!target || !source || target->device != c->device || source->device != d->device) return leave(INVALID_VALUE);
    return leave(copy(stream_of(s), device_data(to, n), device_data(from, n), n, NULL));
}

PUBLIC int cuMemsetD8Async(ptr_t to, unsigned char value, size_t n, stream *s) {
    op *o;
    ENTER_CONTEXT;
    if (!device_data(to, n)) return leave(INVALID_VALUE);
    o = queue(stream_of(s), FILL);
    o->to = device_data(to, n);
    o->value = value;
    o->n = n;
    return leave(OK);
}

/* ---- events */

PUBLIC int cuEventCreate(event **out, unsigned flags) {
    ENTER_CONTEXT;
    *out = calloc(1, sizeof **out);
    (*out)->flags = (int)flags;
    live_events++;
    return leave(OK);
}

PUBLIC int cuEventDestroy_v2(event *e) {
    ENTER;
    finish_all(); /* marks name it */
    free(e);
    live_events--;
    return leave(OK);
}

PUBLIC int cuEventRecord(event *e, stream *s) {
    op *o;
    ENTER_CONTEXT;
    s = stream_of(s);
    if (s->device != current->device) return leave(INVALID_HANDLE);
    o = queue(s, MARK);
    if (s->capture) return leave(OK);
    o->event = e;
    e->on = s;
    e->mark = s->queued;
    e->recorded = 1;
    return leave(OK);
}

PUBLIC int cuEventQuery(event *e) {
    ENTER;
    if (!e->recorded || e->on->done >= e->mark) return leave(OK);
    if (e->on->head) run_one(e->on);
    return leave(NOT_READY);
}

PUBLIC int cuEventSynchronize(event *e) {
    ENTER;
    if (e->recorded) run_to(e->on, e->mark);
    return leave(OK);
}

PUBLIC int cuEventElapsedTime(float *ms, event *start, event *end) {
    ENTER;
    if ((start->flags | end->flags) & 2 || !start->recorded || !end->recorded) return leave(INVALID_HANDLE);
    if (start->on->done < start->mark || end->on->done < end->mark) return leave(NOT_READY);
    *ms = (float)(end->ms - start->ms);
    return leave(OK);
}

PUBLIC int cuStreamWaitEvent(stream *s, event *e, unsigned flags) {
    op *o;
    ENTER_CONTEXT;
    if (!e->recorded) return leave(OK);
    o = queue(stream_of(s), WAIT);
    o->on = e->on;
    o->mark = e->mark;
    return leave(OK);
}

/* ---- graphs */

PUBLIC int cuStreamBeginCapture_v2(stream *s, int mode) {
    ENTER_CONTEXT;
    if (!s || s->capture) return leave(INVALID_VALUE);
    s->capture = calloc(1, sizeof *s->capture);
    live_graphs++;
    return leave(OK);
}

PUBLIC int cuStreamEndCapture(stream *s, graph **out) {
    ENTER_CONTEXT;
    if (!s || !s->capture) return leave(CAPTURE_INVALID);
    *out = s->capture;
    s->capture = NULL;
    return leave(OK);
}

static op *copies_of(const op *o, op **tail) {
    op *head = NULL, *last = NULL, *one;
    for (; o; o = o->next) {
        one = malloc(sizeof *one);
        *one = *o;
        one->next = NULL;
        if (last) last->next = one; else head = one;
        last = one;
    }
    *tail = last;
    return head;
}

static void drop(graph *g) {
    op *o, *next;
    for (o = g->head; o; o = next) {
        next = o->next;
        free(o);
    }
    free(g);
    live_graphs--;
}

PUBLIC int cuGraphInstantiateWithFlags(graph **out, graph *g, unsigned long long flags) {
    ENTER_CONTEXT;
    *out = calloc(1, sizeof **out);
    (*out)->head = copies_of(g->head, &(*out)->tail);
    live_graphs++;
    return leave(OK);
}

PUBLIC int cuGraphLaunch(graph *g, stream *s) {
    op *o, *n;
    ENTER_CONTEXT;
    for (o = g->head; o; o = o->next) {
        op *next;
        n = queue(stream_of(s), o->kind);
        next = n->next;
        *n = *o;
        n->next = next;
    }
    return leave(OK);
}

PUBLIC int cuGraphExecDestroy(graph *g) {
    ENTER;
    drop(g);
    return leave(OK);
}

PUBLIC int cuGraphDestroy(graph *g) {
    ENTER;
    drop(g);
    return leave(OK);
}
