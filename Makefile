# make demo   environment, dependencies, the four commands on a synthesised data set (DATA=folder: on your own)
# make test   environment, dependencies, lint, test suite
# make lint   flake8 (with docstring checks) and mypy
# make bench  speed as ratios against plain baselines
# make clean  remove the environment and the demo

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
DATA ?= demo/recordings
DEMO_TRAINING = --epochs 12 --batch_size 32 --warmup_epochs 1 --train_csv demo/dataset/train.csv \
	--val_csv demo/dataset/val.csv

.PHONY: demo test lint bench clean

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo/recordings: | $(VENV)/installed
	$(RUN) scripts/make_demo_data.py --output_dir $@

demo: $(VENV)/installed $(if $(filter demo/recordings,$(DATA)),demo/recordings)
	$(RUN) scripts/preprocess_enhanced.py --input_dir "$(DATA)" --output_dir demo/dataset --segment_duration 4000
	$(RUN) scripts/train_efficientnet.py --config efficientnet_b0_fast --model_dir demo/model $(DEMO_TRAINING) \
		--learning_rate 3e-3 --drop_connect_rate 0
	$(RUN) scripts/train_efficientnet.py --config resnet18_baseline --model_dir demo/baseline $(DEMO_TRAINING) \
		--learning_rate 1e-3
	$(RUN) scripts/predict_efficientnet.py --model_path demo/model/efficientnet_best.pth --input "$(DATA)" \
		--segment_mode --output demo/results.json --formats json,csv
	$(RUN) scripts/evaluate_model.py --test_csv demo/dataset/test.csv --output_dir demo/report \
		--efficientnet_model demo/model/efficientnet_best.pth --resnet18_model demo/baseline/resnet18_best.pth
	@echo
	@echo "Report:   demo/report/report.html (open it in a browser)"
	@echo "Pictures: demo/dataset/overview.png, demo/model/*.png, demo/report/*.png"
	@echo "Results:  demo/results.json, demo/results.csv"

lint: $(VENV)/installed-dev
	$(RUN) -m flake8
	$(RUN) -m mypy

# a process per core, each with one thread: threads of several processes would wait for each other
test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses auto --dist loadfile

bench: $(VENV)/installed-dev
	$(RUN) -m tests.benchmarks.run

clean:
	rm -rf $(VENV) demo
