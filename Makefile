# make run and make test are all a fresh machine needs: they install what is missing.
SHELL := /bin/bash
GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
FUZZTIME ?= 60s
GOBIN := $(shell $(GO) env GOPATH)/bin

.PHONY: build run fresh test test-deps test-frameworks check check-deps fuzz soak chaos bench bench-deps clean

build:
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/quaymaster ./cmd/quaymaster

run: build
	./scripts/deps curl:curl
	./scripts/quickstart $(ARGS)

test-deps:
	./scripts/deps gcc:build-essential curl:curl openssl:openssl testssl:testssl.sh nginx:nginx certutil:libnss3-tools update-ca-certificates:ca-certificates unshare:util-linux sshd:openssh-server ssh:openssh-client strace:strace podman:podman runc:runc /usr/lib/podman/netavark:netavark iptables:iptables docker-proxy:docker.io dockerd:docker.io containerd:containerd pasta:passt slirp4netns:slirp4netns newuidmap:uidmap ip:iproute2 mount:mount lsof:lsof python3:python3 git:git setpriv:util-linux promtool:prometheus chromium:chromium linux.uml:user-mode-linux systemd-analyze:systemd systemd-socket-activate:systemd

test: test-deps
	$(GO) test -race -timeout 20m ./...
	$(GO) test -timeout 5m -run 'Allocate|IsSmall|TenThousand|Small|LimitsAreKept' ./internal/...  # what the race detector would falsify or not let run

# make run and make test on a Debian that has nothing but Go, git and make; as root. FRESH=--quick runs few of the tests.
fresh:
	./scripts/fresh $(FRESH)

# `dev` with a real Vite and a real Next.js project, made by npm in FOLDER (kept for the next time), and a browser.
test-frameworks:
	./scripts/deps npm:npm chromium:chromium
	mkdir -p $(or $(FOLDER),/tmp/quaymaster-frameworks)
	QM_FRAMEWORKS=$(abspath $(or $(FOLDER),/tmp/quaymaster-frameworks)) $(GO) test -count=1 -timeout 30m -v -run '^TestA18_RealFrameworks' ./cmd/quaymaster

check-deps:
	@test -x $(GOBIN)/gofumpt || $(GO) install mvdan.cc/gofumpt@v0.12.0
	@test -x $(GOBIN)/staticcheck || $(GO) install honnef.co/go/tools/cmd/staticcheck@v0.8.2
	@test -x $(GOBIN)/golangci-lint || $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

check: check-deps
	@out=$$($(GOBIN)/gofumpt -l .); test -z "$$out" || { echo "gofumpt would change:"; echo "$$out"; exit 1; }
	$(GO) vet ./...
	$(GOBIN)/staticcheck ./...
	$(GOBIN)/golangci-lint run
	GOOS=darwin $(GO) build ./... && GOOS=freebsd $(GO) build ./... && GOOS=android GOARCH=arm64 $(GO) build ./...

# Every fuzz target for FUZZTIME, one after the other.
fuzz:
	@set -e; for p in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    echo "== $$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x $$p; done; done

# Mixed load, reloads, restarts, ports bound and released for DURATION: what the daemon holds stays flat.
soak:
	QM_SOAK=$(or $(DURATION),10m) $(GO) test -count=1 -timeout 0 -v -run '^TestD08' ./cmd/quaymaster

# Everything that can happen, at random, for DURATION, with clients that never retry and a judge who knows what they must
# see (docs/design/chaos.md). SEED repeats the choices of a run; CHAOS takes more flags, see `bin/chaos -help`. With RACE=1
# the daemon is built with the race detector.
chaos:
	$(GO) build $(if $(RACE),-race) -o bin/quaymaster-chaos ./cmd/quaymaster
	$(GO) build -o bin/chaos ./chaos
	bin/chaos -binary bin/quaymaster-chaos -duration $(or $(DURATION),5m) $(if $(SEED),-seed $(SEED)) $(if $(RACE),-race -patience 30s) $(CHAOS)

bench-deps:
	./scripts/deps haproxy:haproxy nginx:nginx caddy:caddy sniproxy:sniproxy wrk:wrk h2load:nghttp2-client ab:apache2-utils

bench: build
	$(GO) run ./bench $(ARGS)

clean:
	rm -rf bin bench/out
