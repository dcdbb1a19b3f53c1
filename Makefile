# What people type. `make help` lists it.

SHELL := /bin/bash
PREFIX ?= /usr/local
DESTDIR ?=
TARGET := $(or $(CARGO_TARGET_DIR),target)
BIN := $(TARGET)/release
DEST = $(DESTDIR)$(PREFIX)
PROGRAMS := pythond pysh pyctl
# Commands with a man page of their own, as program-command.
PAGES := $(addprefix pysh-,new run attach hold release ls kill status vars complete int) \
	$(addprefix pyctl-,start stop status pair cert pin unpin trust untrust token)

.DEFAULT_GOAL := help
.PHONY: help build demo demo-stop test torture bench install uninstall fmt lint fuzz clean

help: ## show this list
	@echo 'usage: make WHAT'
	@echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) \
		| while IFS=$$'\t' read -r name text; do printf '  %-10s  %s\n' "$$name" "$$text"; done
	@echo
	@echo 'new here? `make demo`, then read README.md'

build: ## build everything in release mode
	@echo 'building in release mode (some minutes the first time)'
	@cargo build --release --locked -p pythond -p pythond-host -p pysh -p pyctl

demo: build ## start a daemon, show what a session is, leave it running for you
	@bash tests/demo.sh start $(BIN)

demo-stop: ## stop the daemon that the demo left running
	@bash tests/demo.sh stop $(BIN)

test: ## install what the tests need, then run all checks and tests
	@bash tests/all.sh

torture: ## floods, kills and failing system calls, the long round, after `make test`; takes hours
	set -o pipefail; PYTHOND_TORTURE=1 PYTHOND_BIN_DIR=$(TARGET)/debug \
		.venv-tests/bin/python -m pytest -v --tb=short --timeout 7200 --durations=0 \
		$$(grep -rl --include="*.py" PYTHOND_TORTURE python-tests/functional) 2>&1 | tee $(TARGET)/torture.txt

bench: ## measure; ROWS=warm,oneshot chooses, QUICK=1 is short
	@bash tests/bench.sh

install: ## install into PREFIX (default /usr/local), below DESTDIR if given
	@if command -v cargo >/dev/null; then $(MAKE) --no-print-directory build; fi
	install -d $(DEST)/bin $(DEST)/lib/pythond
	install -m 755 $(PROGRAMS:%=$(BIN)/%) $(BIN)/pythond-host $(DEST)/bin
	install -m 755 $(BIN)/libpythond_host.so $(DEST)/lib/pythond
	install -d $(DEST)/share/bash-completion/completions $(DEST)/share/zsh/site-functions \
		$(DEST)/share/fish/vendor_completions.d $(DEST)/share/man/man1 $(DEST)/share/doc/pythond
	for program in $(PROGRAMS); do \
		$(BIN)/$$program completions bash >$(DEST)/share/bash-completion/completions/$$program && \
		$(BIN)/$$program completions zsh >$(DEST)/share/zsh/site-functions/_$$program && \
		$(BIN)/$$program completions fish >$(DEST)/share/fish/vendor_completions.d/$$program.fish && \
		$(BIN)/$$program man >$(DEST)/share/man/man1/$$program.1 || exit 1; \
	done
	for page in $(PAGES); do \
		$(BIN)/$${page%%-*} man $${page#*-} >$(DEST)/share/man/man1/$$page.1 || exit 1; \
	done
	install -d $(DEST)/lib/systemd/user
	sed 's|@BINDIR@|$(PREFIX)/bin|' src/systemd/pythond.service >$(DEST)/lib/systemd/user/pythond.service
	install -m 644 src/systemd/pythond.socket $(DEST)/lib/systemd/user
	install -m 644 README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE src/protocol/PROTOCOL.md src/protocol/schema.json \
		$(DEST)/share/doc/pythond

uninstall: ## remove what `make install` put there
	rm -f $(PROGRAMS:%=$(DEST)/bin/%) $(DEST)/bin/pythond-host \
		$(DEST)/lib/systemd/user/pythond.service $(DEST)/lib/systemd/user/pythond.socket \
		$(PROGRAMS:%=$(DEST)/share/bash-completion/completions/%) \
		$(PROGRAMS:%=$(DEST)/share/zsh/site-functions/_%) \
		$(PROGRAMS:%=$(DEST)/share/fish/vendor_completions.d/%.fish) \
		$(patsubst %,$(DEST)/share/man/man1/%.1,$(PROGRAMS) $(PAGES))
	rm -rf $(DEST)/lib/pythond $(DEST)/share/doc/pythond

fmt: ## format the Rust and Python sources
	cargo fmt --all
	@if [ -x .venv-tests/bin/ruff ]; then .venv-tests/bin/ruff format python-tests src/bench tests; fi

lint: ## formatting, clippy, documentation
	@bash tests/all.sh lint

fuzz: ## fuzz the parsers; SECONDS_EACH=60 for each target
	@bash src/protocol/fuzz/run.sh $(or $(SECONDS_EACH),60)

clean: ## remove everything that was built or installed for tests
	cargo clean
	rm -rf .venv-tests .demo
