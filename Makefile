# Entry points; the work is done in scripts/. VENV=DIR and PYTHON=COMMAND choose the venv and its interpreter.

VENV ?= .venv
export VENV
py = $(VENV)/bin/python
digits = examples/models/digits/1/model.onnx
add_sub = examples/models/add_sub/1/model.onnx
voice = examples/models/voice_activity/1/model.onnx

.DEFAULT_GOAL := build
.PHONY: help build models demo examples serve torch test check asan fuzz soak bench bench-check sbom clean

help:           ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile | expand -t 14

build:          ## venv, Python packages and native extensions, only what is missing or changed
	@scripts/setup.sh

models: build   ## the example models, trained and written on demand
	@$(MAKE) --no-print-directory $(digits) $(add_sub) $(voice)

$(digits): examples/digits/train.py examples/digits/cnn.py examples/digits/data.py
	@OPENBLAS_NUM_THREADS=1 $(py) examples/digits/train.py

$(add_sub): examples/add_sub/build.py
	@$(py) examples/add_sub/build.py

$(voice): examples/streaming/train.py examples/streaming/vad.py examples/streaming/speech.py
	@OPENBLAS_NUM_THREADS=1 $(py) examples/streaming/train.py

demo: models    ## start the server, classify images and detect speech in streams, stop it
	@bash -c '. scripts/lib.sh; need curl curl'
	@$(py) -m scripts.demo

examples: build ## train the models of examples/ that have a README, serve each and run its client
	@OPENBLAS_NUM_THREADS=1 $(py) -m scripts.examples $(ARGS)

serve: models   ## serve examples/models in the foreground; ARGS= adds flags
	@exec $(py) -m triton_fast --model-repository=examples/models $(ARGS)

torch: build    ## PyTorch for the tests, where pip offers a build for CPUs; TORCH= leaves it out
	@scripts/torch.sh

# A file's tests share servers, so that a file stays in one process. More than four get into each other's way. A process
# that crashes ends the run: by itself the plugin would wait for what was left of its files.
processes = -n logical --maxprocesses=4 --dist=loadfile --max-worker-restart=0

test: models torch ## all tests, in a process for each of up to four cores; T='-k expression' or T=path narrows, in one
	@$(py) -m pytest $(if $(T),$(T),$(processes))

check: build    ## ruff, cython-lint, mypy --strict, rules of layers, tree and pages
	@scripts/check.sh

asan: build     ## native tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@scripts/asan.sh

fuzz: build     ## the fuzzers, TF_FUZZ_SECONDS (60) in all
	@scripts/fuzz.sh

soak: models    ## 200 000 mixed requests (TF_SOAK_REQUESTS)
	@TF_SOAK_REQUESTS=$${TF_SOAK_REQUESTS:-200000} $(py) -m pytest -m soak -o timeout=3600 tests $(T)

bench: build    ## HTTP and gRPC load against nginx (and TRITON_REFERENCE=launcher); ARGS=--quick
	@scripts/bench_tools.sh wrk h2load nginx
	@$(py) -m bench.server $(ARGS)
	@$(py) -m bench.server.python_models $(filter-out --server-args%,$(ARGS))
	@$(py) -m bench.server.ensemble $(filter-out --server-args%,$(ARGS))

bench-check: build ## instruction counts against bench/baselines; ARGS=--update rewrites them
	@scripts/bench_tools.sh valgrind
	@$(py) -m bench.micro $(ARGS)

sbom: build     ## build/sbom.cdx.json, what is installed; AUDIT=1 asks pip-audit too
	@scripts/sbom.sh

clean:          ## remove what the build made (not the venv)
	@rm -rf build dist *.egg-info triton_fast/protos/v2.binpb
	@find triton_fast -name '*.so' -delete
