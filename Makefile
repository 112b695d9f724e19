# Every target does its own set-up, in .venv.
PYTHON ?= python3
PROMPT ?= a bold seven leaning left
RUN    ?= runs/mnist
BIN    := .venv/bin
export PROMPT

# What is computed on arrays alone, and quickly: also on the stand-in for CuPy in every `make test`.
STRICT := $(patsubst %,tests/test_%.py,attention function gradients layer_references models nn ops \
    optim oracle primitives references schedules)

.PHONY: train-mnist sample evaluate bench experiments lessons test test-slow test-planted test-strict test-gpu lint clean

train-mnist: .venv/ready .venv/gpu
	$(BIN)/python -m ldm_numpy train all --out "$(RUN)" --seed 0 --resume

sample: .venv/ready
	$(BIN)/python -m ldm_numpy sample "$$PROMPT" --out samples.png

evaluate: .venv/ready
	$(BIN)/python -m ldm_numpy evaluate

# Ten minutes, on a machine that does nothing else. BENCH="--quick --only unet" for a look.
bench: .venv/bench
	$(BIN)/python -m benchmarks $(BENCH)

# Hours, after train-mnist; goes on where it was. EXPERIMENTS="samplers" for a part.
experiments: .venv/dev
	$(BIN)/python -m benchmarks.experiments --base "$(RUN)" $(EXPERIMENTS)

# Run the lessons and bring their outputs and figures up to date; make lesson-05 for one.
lessons: .venv/lessons
	$(BIN)/python -m lessons.run

lesson-%: .venv/lessons
	$(BIN)/python -m lessons.run $*

notebook-%: .venv/lessons
	$(BIN)/python -m lessons.notebook $*

# Check what was written into lessons/exercises/.
exercise-%: .venv/ready
	$(BIN)/python -m lessons.check $*

test: .venv/dev lint
	$(BIN)/python -m pytest -m "not slow"
	$(BIN)/python -m pytest -m "not slow" --backend strict $(STRICT)
	$(BIN)/python -m lessons.run --check

test-slow: .venv/dev
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m pytest -m "not slow" --backend strict

# One wrong line at a time, by rules: each should turn a test red. PLANTED="--only ops/linear".
test-planted: .venv/dev
	$(BIN)/python -m tests.planted $(PLANTED)

# All fast tests on the stand-in: ten minutes.
test-strict: .venv/dev
	$(BIN)/python -m pytest -m "not slow" --backend strict

# The same tests, with the library's arrays on an NVIDIA GPU.
test-gpu: .venv/dev .venv/gpu
	$(BIN)/python -m pytest -m "not slow" --backend gpu

lint: .venv/dev
	$(BIN)/python -m ruff check .

.venv/ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 2; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/lessons: lessons/requirements.txt .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r lessons/requirements.txt
	touch $@

.venv/dev: requirements-dev.txt .venv/lessons
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

.venv/bench: benchmarks/requirements.txt .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	touch $@

# Where an NVIDIA driver answers, CuPy of its CUDA major version; elsewhere nothing.
.venv/gpu: requirements-gpu.txt .venv/ready
	@cuda=$$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA[A-Z ]*Version *: *\([0-9][0-9]*\).*/\1/p' | head -n 1); \
	if [ -n "$$cuda" ]; then \
	    if [ "$$cuda" -ge 13 ]; then cuda=13; else cuda=12; fi; \
	    sed "s/cupy-cuda12x/cupy-cuda$${cuda}x/" requirements-gpu.txt > .venv/gpu.txt; \
	    if $(BIN)/python -m pip install --quiet --disable-pip-version-check -r .venv/gpu.txt; \
	    then touch $@; \
	    else echo "CuPy could not be installed: training goes on without the GPU"; fi; \
	fi

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build *.egg-info
