# What an ensemble is, as its config says it (Plan), and the models that its steps go to now (Members). Both are made
# with the GIL and read without. A plan never changes; members are made anew when a name means another version.
#
# Levels: level 0 runs once for a request. The responses of a decoupled step open a level of their own: what depends on
# them runs once for each (a frame, sched/ensemble_run.pxd). Tensors and steps are of the deepest level they depend on.
from libc.stdint cimport int32_t, int64_t, uint32_t

from triton_fast._native.core.model cimport Model
from triton_fast._native.sched.scheduler cimport Scheduler


cdef struct PlanName:
    char* text
    uint32_t len

cdef struct PlanStep:
    int32_t n_inputs        # of the member that are mapped
    PlanName* inputs
    int32_t* input_tensor   # the ensemble's tensor for each of them
    int32_t n_outputs
    PlanName* outputs
    int32_t* output_tensor
    int32_t n_takes         # the tensors among input_tensor, each once
    int32_t* takes
    int32_t level
    int32_t at              # among the steps of its level
    int32_t opens           # a decoupled step: the level of its outputs; -1
    PlanName member
    int64_t version

cdef struct PlanTensor:
    int32_t level
    int32_t at              # among the tensors of its level
    int32_t n_users
    int32_t* users          # steps, each once
    int32_t input           # of the ensemble; -1
    int32_t output          # of the ensemble; -1
    bint deeper             # a step of a deeper level takes it

cdef struct PlanLevel:
    int32_t parent          # -1: level 0
    int32_t step            # whose responses open it
    int32_t n_tensors
    int32_t* tensors
    int32_t n_steps
    int32_t* steps          # a step comes after those that it depends on

cdef struct Plan:
    int32_t n_steps
    PlanStep* steps
    int32_t* order          # steps, each after those that it depends on
    int32_t n_tensors
    PlanTensor* tensors
    int32_t n_levels
    PlanLevel* levels
    int32_t n_inputs
    int32_t* input_tensor   # of each input of the ensemble; -1: nobody takes it
    int32_t n_outputs
    int32_t* output_tensor
    void* memory            # list of what was allocated

# The model of one step.
cdef struct Member:
    Model* model            # NULL: the name has none, the error says why
    Scheduler* scheduler
    int32_t* inputs         # position of each mapped input among the model's; -1: it has no such
    int32_t* outputs        # the ensemble's tensor of each of the model's outputs; -1
    bint all_outputs        # every output of the model is mapped
    bint loops              # decoupled, and what its responses lead to comes to its own model again
    int32_t code
    PlanName error

# Counted: the ensemble has one reference, each request under way another. While there are any, the models are not
# stopped (wait_unheld).
cdef struct Members:
    int32_t refs
    long long epoch
    void* owner             # a Python tuple of the NativeModels
    int32_t n
    Member* steps
    void* memory


cdef Plan* plan_new(object steps, object inputs, object outputs) except NULL
cdef void plan_free(Plan* p) noexcept nogil
# With the GIL. Ask resolve(name, version) for the model of each step; one that has none is no error yet.
cdef Members* members_new(Plan* p, object resolve, long long epoch) except NULL
# Addresses of the models that they may run, members of members included.
cdef frozenset members_reach(Members* m)
# Takes the GIL for the last reference.
cdef void members_unref(Members* m) noexcept nogil
