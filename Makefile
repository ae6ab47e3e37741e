# make demo   environment, dependencies, the four commands on a synthesised data set (DATA=folder: on your own; remove
#             demo/ before another data set: its models would go on with the one they began with)
# make test   environment, dependencies, lint, test suite
# make lint   flake8 (with docstring checks) and mypy
# make bench  speed as ratios against plain baselines
# make clean  remove the environment and the demo
# On Windows run it from Git Bash, whose commands the recipes use.

VENV ?= .venv
ifeq ($(OS),Windows_NT)
PYTHON ?= python
RUN = $(VENV)/Scripts/python.exe
else
PYTHON ?= python3
RUN = $(VENV)/bin/python
endif
DATA ?= demo/recordings
DEMO_TRAINING = --batch_size 32 --warmup_epochs 1 --train_csv demo/dataset/train.csv --val_csv demo/dataset/val.csv
# training refuses a folder that holds a run unless it may go on with it
resume = $(if $(wildcard $(1)/*_last.pth),--resume)

.PHONY: demo test lint flake8 mypy bench clean

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt requirements-extra.txt $(VENV)/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo/recordings: | $(VENV)/installed
	$(RUN) scripts/make_demo_data.py --output_dir $@

demo: $(VENV)/installed $(if $(filter demo/recordings,$(DATA)),demo/recordings)
	$(RUN) scripts/preprocess_enhanced.py --input_dir "$(DATA)" --output_dir demo/dataset --segment_duration 4000
	$(RUN) scripts/train_efficientnet.py --config efficientnet_b0_fast --model_dir demo/model $(DEMO_TRAINING) \
		$(call resume,demo/model)
	$(RUN) scripts/train_efficientnet.py --config resnet18_baseline --model_dir demo/baseline $(DEMO_TRAINING) \
		--epochs 12 $(call resume,demo/baseline)
	$(RUN) scripts/predict_efficientnet.py --model_path demo/model/efficientnet_best.pth --input "$(DATA)" \
		--segment_mode --output demo/results.json --formats json,csv
	$(RUN) scripts/evaluate_model.py --test_csv demo/dataset/test.csv --output_dir demo/report \
		--efficientnet_model demo/model/efficientnet_best.pth --resnet18_model demo/baseline/resnet18_best.pth
	@echo
	@echo "Report:   demo/report/report.html (open it in a browser)"
	@echo "Pictures: demo/dataset/overview.png, demo/model/*.png, demo/report/*.png"
	@echo "Results:  demo/results.json, demo/results.csv"

lint: flake8 mypy

flake8 mypy: $(VENV)/installed-dev
	$(RUN) -m $@

# a process per core, each with one thread: threads of several processes would wait for each other; files in their order,
# for those of few tests take longest and would otherwise come last; a process that dies is not replaced, for
# pytest-xdist 3.8 may then wait for ever and not tell in which test it died; what hangs is told after so many seconds
test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder \
		--max-worker-restart 0 --timeout 600

bench: $(VENV)/installed-dev
	$(RUN) -m tests.benchmarks.run
	$(RUN) -m tests.benchmarks.field
	$(RUN) -m tests.benchmarks.preparing
	$(RUN) -m tests.benchmarks.evaluating
	$(RUN) -m tests.benchmarks.cluster

clean:
	rm -rf $(VENV) demo
