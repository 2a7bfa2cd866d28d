#!/usr/bin/env bash
# A machine with rustup, git and a C compiler → one that can build, test and run this project.
#
# Usage: setup.sh PART...
#   build          the sources of `core` and the BPF linker
#   run            programs that tests, demo and benchmark call
#   control-plane  etcd, Kubernetes, kube-proxy and helm for the tests
#   deny           cargo-deny
#   fuzz           a C++ compiler, for libFuzzer
#   go             a Go that builds modules of any release
#   containers     Docker and debootstrap, for a kind cluster
#
# Looks first and installs only what is missing; parts run side by side. Programs lie in the folder `bin` of the cache, or
# are linked there. Standard output says, as NAME=VALUE, where those are that differ between checkouts.
set -euo pipefail

BPF_LINKER=0.13.0
CARGO_DENY=0.20.2
SUITE=trixie-backports # of Debian: has rust-src of several releases at once, and a Go that fetches newer ones
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

cd "$(dirname "$0")/.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/lb-ebpf
PATH=$cache/bin:$PATH:/usr/sbin:/sbin
mkdir -p "$cache/bin"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { echo "[set-up $(printf '%4d' $SECONDS) s] $*" >&2; }
fail() {
	echo "set-up: $*" >&2
	exit 1
}
# lacks TEXT: says why a step failed, to whoever says what follows from that.
lacks() {
	echo "set-up: $*" >&2
	return 1
}
has() { command -v "$1" >/dev/null; }

# quiet COMMAND...: shows the end of what a command wrote if it fails.
quiet() {
	local log
	log=$(mktemp -p "$work")
	"$@" >"$log" 2>&1 </dev/null || {
		echo "\`$*\` failed:" >&2
		tail -n 15 "$log" >&2
		return 1
	}
}

# ---- Debian ----

# packages PROGRAM=PACKAGE...: installs the packages of programs that are missing.
packages() {
	local pair missing=()
	for pair; do has "${pair%=*}" || missing+=("${pair#*=}"); done
	[ ${#missing[@]} -gt 0 ] || return 0
	if [ "$(id -u)" != 0 ] || ! has apt-get; then
		fail "packages are missing: ${missing[*]}; install them, or run as root on Debian or Ubuntu"
	fi
	say "packages: ${missing[*]}"
	# Another package run, such as a machine's first boot, may hold the lock for a while.
	local apt=(apt-get -qq -o DPkg::Lock::Timeout=180)
	quiet "${apt[@]}" update
	DEBIAN_FRONTEND=noninteractive quiet "${apt[@]}" install --yes --no-install-recommends "${missing[@]}"
}

# unpack FOLDER PACKAGE...: files of the suite's packages, without a change of the machine's packages or settings.
# A package may be a regular expression, of which the newest version is taken, and may end in =VERSION.
unpack() {
	local folder=$1 suite=$1.apt repository package name
	shift
	[ -e $KEYRING ] && has apt-get || lacks "this machine is no Debian" || return
	mkdir -p "$folder" "$suite"/{lists/partial,cache/archives/partial}
	# The machine's own mirror; security archives have other suites.
	repository=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' |
		awk -v suite="$(. /etc/os-release && echo "$VERSION_CODENAME")" '$1 == suite { print $2; exit }')
	echo "deb [signed-by=$KEYRING] $repository $SUITE main" >"$suite/source.list"
	cat >"$suite/apt.conf" <<-END
		Dir::Etc::SourceList "$suite/source.list";
		Dir::Etc::SourceParts "-";
		Dir::State::Lists "$suite/lists";
		Dir::Cache "$suite/cache";
		APT::Sandbox::User "root";
		Acquire::Languages "none";
	END
	export APT_CONFIG=$suite/apt.conf
	quiet apt-get -q update || lacks "cannot read the list of $SUITE" || return
	for package; do
		name=$(apt-cache pkgnames | grep -xE "${package%=*}" | sort -V | tail -n 1)
		case $package in
		*=*) name+="=$(apt-cache madison "$name" | awk -v wanted="${package#*=}" '$3 ~ "^" wanted "[-+~]" { print $3; exit }')" ;;
		esac
		(cd "$suite" && quiet apt-get -q download "$name") || lacks "$SUITE has no $package" || return
	done
	unset APT_CONFIG
	for package in "$suite"/*.deb; do
		dpkg-deb --extract "$package" "$folder" || lacks "cannot unpack ${package##*/}" || return
	done
}

# ---- the BPF build ----

rust_src() {
	local library=$sysroot/lib/rustlib/src/rust/library
	[ -e "$library/Cargo.lock" ] && return
	say 'rust-src: asking rustup for it'
	timeout 90 rustup component add rust-src >"$work/rustup" 2>&1 && [ -e "$library/Cargo.lock" ] && return
	say "rust-src: rustup cannot fetch it, taking Debian's package"
	unpack "$work/rust-src" "rust-src=$release" ||
		fail "no sources of core, which the BPF target needs; rustup said: $(tail -n 1 "$work/rustup")"
	mkdir -p "${library%/*}"
	rm -rf "$library" "$library.partial"
	# Moved in one step: an interrupted run leaves nothing that looks complete.
	cp -r "$work/rust-src/usr/src/rustc-$release/library" "$library.partial"
	mv "$library.partial" "$library"
}

# Built against the compiler's own LLVM: it reads every bitcode that the compiler writes, and needs no LLVM package.
bpf_linker() {
	local folder=$cache/bpf-linker-$BPF_LINKER-rustc-$release-$commit llvm
	echo "LB_BPF_LINKER=$folder/bin/bpf-linker"
	llvm=$(echo "$sysroot"/lib/libLLVM.so.*)
	[ -e "$llvm" ] || fail "$sysroot has no libLLVM.so; use a toolchain from rustup, which brings it"
	mkdir -p "$folder/lib"
	ln -sf "$llvm" "$folder/lib/libLLVM.so"
	ln -sf "$llvm" "$folder/lib/${llvm##*/}"
	[ -e "$folder/bin/bpf-linker" ] && return
	say "bpf-linker $BPF_LINKER: building it"
	LLVM_PREFIX=$folder install_crate "$folder" bpf-linker $BPF_LINKER --no-default-features --features "llvm-$llvm_major"
}

# ---- other programs ----

# Not optimised: that takes longer than such a program ever runs.
install_crate() {
	local folder=$1 crate=$2 version=$3
	shift 3
	quiet env -u RUSTFLAGS -u CARGO_BUILD_TARGET -u CARGO_TARGET_DIR CARGO_PROFILE_RELEASE_OPT_LEVEL=0 \
		cargo install "$crate" --version "$version" --locked --root "$folder" "$@" ||
		fail "cannot build $crate; is the crate registry reachable?"
}

deny() {
	local folder=$cache/cargo-deny-$CARGO_DENY
	if [ ! -e "$folder/bin/cargo-deny" ]; then
		say "cargo-deny $CARGO_DENY: building it"
		install_crate "$folder" cargo-deny $CARGO_DENY
	fi
	ln -sf "$folder/bin/cargo-deny" "$cache/bin/"
}

run() {
	local pairs=(ip=iproute2 nft=nftables iptables=iptables conntrack=conntrack)
	# Ubuntu 24.04 has bpftool in the packages of its kernels, behind a wrapper that wants the running kernel's own.
	if [ "$(. /etc/os-release && echo "$ID")" = ubuntu ]; then
		pairs+=(bpftool=linux-tools-common bpftool=linux-tools-generic)
	else
		pairs+=(bpftool=bpftool)
	fi
	packages "${pairs[@]}"
	bpftool version >/dev/null 2>&1 && return
	local tool
	tool=$(ls /usr/lib/linux-tools/*/bpftool 2>/dev/null | tail -n 1) || true
	[ -n "$tool" ] || fail 'bpftool does not run; install the package of it that fits the running kernel'
	ln -sf "$tool" "$cache/bin/"
}

# Any Go since 1.21 fetches the release that a module asks for, if it is told to: Debian's is not.
export GOTOOLCHAIN=auto
go_compiler() {
	local go
	exec 8>"$cache/go.lock" # other parts come here, too
	flock 8
	for go in "$(command -v go || true)" /usr/local/go/bin/go "$cache/go/bin/go"; do
		[ -x "$go" ] && [ "$(GOTOOLCHAIN=local "$go" env GOVERSION | cut -d . -f 2)" -ge 21 ] && break
		go=
	done
	if [ -z "$go" ]; then
		say "Go: taking Debian's package of it"
		unpack "$work/go" 'golang-1\.[0-9]+-go' 'golang-1\.[0-9]+-src' ||
			fail 'no Go, which builds the control plane of the tests; install Go 1.21 or newer'
		# Debian spreads the tree over two folders and links their parts together by absolute paths.
		find "$work"/go/usr/lib/go-* -type l -delete
		cp -r "$work"/go/usr/share/go-*/. "$work"/go/usr/lib/go-*/
		rm -rf "$cache/go" "$cache/go.partial"
		cp -r "$work"/go/usr/lib/go-* "$cache/go.partial"
		mv "$cache/go.partial" "$cache/go"
		go=$cache/go/bin/go
	fi
	[ "$go" -ef "$cache/bin/go" ] || ln -sf "$go" "$cache/bin/"
	exec 8>&-
}

# go_programs FOLDER MODULE FLAGS PACKAGE...: programs of a module of tests/ in a folder that is not there.
go_programs() {
	local folder=$1 module=$2 flags=$3
	shift 3
	go_compiler
	rm -rf "$folder.partial"
	mkdir "$folder.partial"
	CGO_ENABLED=0 GOFLAGS=-buildvcs=false \
		quiet go build -C "$module" -trimpath -ldflags "-s -w $flags" -o "$folder.partial/" "$@" ||
		fail "cannot build the programs of $module; is the Go module proxy reachable?"
	mv "$folder.partial" "$folder"
}

control_plane() {
	local module=tests/control-plane folder version name packages=(go.etcd.io/etcd/server/v3)
	folder=$cache/control-plane-$(sha256sum $module/go.sum | cut -c -16)
	if [ ! -e "$folder" ]; then
		version=$(awk '$1 == "k8s.io/kubernetes" { print $2 }' $module/go.mod)
		for name in kube-apiserver kube-controller-manager kube-proxy kubectl; do
			packages+=("k8s.io/kubernetes/cmd/$name")
		done
		say "control plane: building etcd and Kubernetes $version (6 minutes on two idle cores, once)"
		go_programs "$folder" $module "-X k8s.io/component-base/version.gitVersion=$version" "${packages[@]}"
		mv "$folder/server" "$folder/etcd" # the package's folder gave it its name
	fi
	echo "LB_CONTROL_PLANE=${LB_CONTROL_PLANE:-$folder}"
	folder=$cache/helm-$(sha256sum tests/helm/go.sum | cut -c -16)
	if [ ! -e "$folder" ]; then
		say 'helm: building it (a minute, once)'
		go_programs "$folder" tests/helm '' helm.sh/helm/v4/cmd/helm
	fi
	ln -sf "$folder/helm" "$cache/bin/"
}

fuzz() { packages c++=g++; }

containers() { packages dockerd=docker.io debootstrap=debootstrap; }

# ---- what was asked for ----

eval "$(rustc -vV | sed -n \
	-e 's/^release: \(.*\)/release=\1/p' \
	-e 's/^commit-hash: \(.\{9\}\).*/commit=\1/p' \
	-e 's/^LLVM version: \([0-9]*\).*/llvm_major=\1/p')"
sysroot=$(rustc --print sysroot)
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
[ "${release%.*}" = "$wanted" ] || fail "rustc $release is active, and $wanted is wanted; unset RUSTUP_TOOLCHAIN"

parts=()
for part; do
	case $part in
	build) parts+=(rust_src bpf_linker) ;;
	run | deny | fuzz | containers) parts+=("$part") ;;
	control-plane) parts+=(control_plane) ;;
	go) parts+=(go_compiler) ;;
	*) fail "there is no part $part" ;;
	esac
done
running=()
for part in "${parts[@]}"; do
	# Held while a part is looked at and installed: two checkouts may set up at once.
	(
		exec 9>"$cache/$part.lock"
		flock 9
		$part
	) &
	running+=($!)
done
status=0
for pid in "${running[@]}"; do wait "$pid" || status=1; done
exit $status
