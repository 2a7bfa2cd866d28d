#!/usr/bin/env bash
# Makes a kind node image, with the images of Kubernetes and of its end-to-end tests inside, from Go modules and Debian
# packages. No container registry is asked. `cargo xtask kind up` calls it where kind's own image cannot be pulled.
#
# Usage: node-image.sh FOLDER IMAGE     what exists in FOLDER is kept; IMAGE is made by the Docker daemon of DOCKER_HOST
#        node-image.sh FOLDER programs  only what Go builds
#        node-image.sh FOLDER kind      only kind
#
# The node's own files (entrypoint, units, containerd's settings) come from kind's Go module. Versions: go.mod names
# Kubernetes, kind and ginkgo, etcd/go.mod names etcd; the rest is below. To move on: set them, then the tags of the
# end-to-end images by test/utils/image/manifest.go of that Kubernetes version.
set -euo pipefail

CONTAINERD=github.com/containerd/containerd/v2@v2.3.4
COREDNS=github.com/coredns/coredns@v1.14.2
CRICTL=sigs.k8s.io/cri-tools@v1.36.0
CNI=github.com/containernetworking/plugins@v1.9.1
SUITE=bookworm # its systemd still starts on hosts with version 1 of cgroups
E2E=registry.k8s.io/e2e-test-images
TOOLBOX=registry.k8s.io/build-image/distroless-iptables:v0.9.6

# What a node runs; then what the images of the end-to-end tests hold.
PACKAGES=systemd,systemd-sysv,dbus,conntrack,iptables,nftables,ipset,iproute2,ethtool,util-linux,mount,kmod
PACKAGES+=,libseccomp2,runc,pigz,e2fsprogs,bash,ca-certificates,curl,jq,procps,socat,bpftool
PACKAGES+=,busybox,wget,bind9-dnsutils,bind9-host,netcat-openbsd,iperf,iputils-ping

here=$(cd "$(dirname "$0")" && pwd)
folder=$1
image=$2
bin=$folder/bin
root=$folder/root
images=$folder/images
logs=$folder/logs
mkdir -p "$bin" "$logs"
cd "$here"

export GOTOOLCHAIN=auto # Debian's Go fetches no release unless told to
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)

say() { echo "[node image $(printf '%4d' $SECONDS) s] $*" >&2; }

# ---- programs ----

# static NAME FOLDER PACKAGE [FLAG...]
static() {
	local name=$1 dir=$2 package=$3
	shift 3
	if [ -e "$bin/$name" ]; then return; fi
	say "building $name"
	CGO_ENABLED=0 nice -n 10 go build -C "$dir" -trimpath -ldflags '-s -w' "$@" -o "$bin/$name" "$package"
}

# The folder of a module, fetched if it is not there.
source_of() {
	local told
	told=$(go mod download -json "$1") || {
		echo "cannot fetch $1: $told" >&2
		return 1
	}
	sed -n 's/^\t"Dir": "\(.*\)",$/\1/p' <<<"$told"
}

programs() {
	local name dir stamp='-s -w' minor=${version#v1.}
	for name in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
		stamp+=" -X $name.gitVersion=$version -X $name.gitTreeState=clean"
		stamp+=" -X $name.gitMajor=1 -X $name.gitMinor=${minor%%.*}"
	done
	static kind . sigs.k8s.io/kind
	dir=$(source_of $CONTAINERD)
	for name in containerd ctr containerd-shim-runc-v2; do
		static $name "$dir" ./cmd/$name -tags 'no_aufs no_zfs no_btrfs no_devmapper' \
			-ldflags "-s -w -X ${CONTAINERD%@*}/version.Version=${CONTAINERD#*@}"
	done
	for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubeadm kubectl; do
		static $name . k8s.io/kubernetes/cmd/$name -ldflags "$stamp"
	done
	static etcd etcd go.etcd.io/etcd/server/v3
	static coredns "$(source_of $COREDNS)" .
	static crictl "$(source_of $CRICTL)" ./cmd/crictl
	dir=$(source_of $CNI)
	for name in ipam/host-local main/loopback main/ptp meta/portmap; do
		static "cni-${name#*/}" "$dir" ./plugins/$name
	done
	for name in agnhost regression-issue-74839; do
		static $name . k8s.io/kubernetes/test/images/$name
	done
	static ginkgo . github.com/onsi/ginkgo/v2/ginkgo
	if [ ! -e "$bin/e2e.test" ]; then
		say 'building e2e.test'
		CGO_ENABLED=0 nice -n 10 go test -c -trimpath -ldflags "$stamp" -o "$bin/e2e.test" k8s.io/kubernetes/test/e2e
	fi
	[ -e "$bin/pause" ] || cc -O2 -static -s -o "$bin/pause" pause.c
}

# ---- the node's files ----

packages() {
	if [ -e "$folder/root.done" ]; then return; fi
	say 'installing the root file system'
	rm -rf "$root"
	# This machine's own mirror, when it is a Debian of that suite.
	local mirror
	mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $SUITE" 'Created-By: Packages' | head -1)
	nice -n 10 debootstrap --variant=minbase --include=$PACKAGES $SUITE "$root" $mirror >"$logs/debootstrap.log" 2>&1
	rm -rf "$root"/var/{cache/apt/archives/*.deb,lib/apt/lists/*} "$root"/usr/share/{doc,man,locale}
	touch "$folder/root.done"
}

kubernetes_image() { "$bin/kubeadm" config images list --kubernetes-version "$version" 2>/dev/null | grep "/$1:"; }

node() {
	say "the node's files"
	local files name
	files=$(source_of sigs.k8s.io/kind)/images/base/files
	cp -r --no-preserve=mode,ownership "$files/etc" "$files/kind" "$root/"
	install -m 755 -t "$root/usr/local/bin" "$files"/usr/local/bin/*
	chmod 755 "$root"/kind "$root"/kind/bin "$root"/kind/bin/*

	# Of systemd's units only what a node needs.
	rm -f "$root"/lib/systemd/system/{multi-user,local-fs,basic}.target.wants/* \
		"$root"/lib/systemd/system/sockets.target.wants/*{udev,initctl}* \
		"$root"/lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service
	find "$root/etc/systemd/system" -path '*.wants/*' -delete
	chroot "$root" systemctl --quiet enable kubelet containerd undo-mount-hacks
	chroot "$root" systemctl --quiet mask systemd-binfmt
	mkdir -p "$root/etc/systemd/journald.conf.d"
	printf '[Journal]\nReadKMsg=no\n' >"$root/etc/systemd/journald.conf.d/node.conf"

	install -t "$root/usr/local/bin" "$bin"/{containerd,ctr,containerd-shim-runc-v2,crictl}
	install -t "$root/usr/bin" "$bin"/{kubelet,kubeadm,kubectl}
	install "$here/runc" "$root/usr/local/bin/runc-here"
	mkdir -p "$root"/opt/cni/bin "$root"/etc/kubernetes/manifests "$root"/kind/manifests
	for name in host-local loopback ptp portmap; do install "$bin/cni-$name" "$root/opt/cni/bin/$name"; done
	cp storage.yaml "$root/kind/manifests/default-storage.yaml"
	printf %s "$version" >"$root/kind/version"

	# The last two lines are for machines whose root lacks CAP_SYS_RESOURCE: no process can lower its OOM score.
	sed -i "$root/etc/containerd/config.toml" \
		-e "s|sandbox_image = .*|sandbox_image = \"$(kubernetes_image pause)\"|" \
		-e 's|restrict_oom_score_adj = false|restrict_oom_score_adj = true|' \
		-e 's|^\( *\)SystemdCgroup = true|&\n\1BinaryName = "/usr/local/bin/runc-here"|'
	chroot "$root" ctr oci spec |
		chroot "$root" jq 'del(.process.rlimits)
			| .hooks.createContainer += [{"path": "/kind/bin/mount-product-files.sh"}]' >"$root/etc/containerd/cri-base.json"
}

# ---- container images ----

# copy_from_root DEST FILE... copies files of the root file system with their links and libraries.
copy_from_root() {
	local dest=$1 file
	shift
	for file; do
		printf '%s\n' "$file" "/$(realpath -m --relative-to="$root" "$root$file")"
		{ chroot "$root" ldd "$file" 2>/dev/null || true; } | grep -o '/[^ ]*' | while read -r file; do
			printf '%s\n' "$file" "/$(realpath --relative-to="$root" "$root$(chroot "$root" readlink -f "$file")")"
		done
	done | sort -u | sed 's|^/||' |
		tar -C "$root" -c -T - --hard-dereference | tar -C "$dest" -x --keep-directory-symlink
}

# base DEST starts a root with merged /usr.
base() {
	local dir
	mkdir -p "$1"/usr/{bin,sbin,lib,lib64} "$1"/{etc,root,run,var/log,var/www,uploads}
	mkdir -m 1777 "$1/tmp"
	for dir in bin sbin lib lib64; do ln -s usr/$dir "$1/$dir"; done
	cp "$root"/etc/{passwd,group,nsswitch.conf,protocols} "$1/etc/" 2>/dev/null || true
}

# make LIST NAME FROM [PROGRAM=DEST...] [-- DOCKERFILE-LINE...] makes an image of $context and programs.
make() {
	local list=$1 name=$2 from=$3
	shift 3
	while [ $# -gt 0 ] && [ "$1" != -- ]; do
		install -D "$bin/${1%=*}" "$context/files/${1#*=}"
		shift
	done
	shift || true
	{
		echo "FROM $from"
		if [ -d "$context/files" ]; then echo 'COPY files /'; fi
		echo 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
		printf '%s\n' "$@"
	} >"$context/Dockerfile"
	DOCKER_BUILDKIT=0 docker build --quiet --tag "$name" "$context" >>"$logs/images.log" 2>&1
	echo "$name" >>"$images/$list"
	rm -rf "$context"
	mkdir "$context"
}

container_images() {
	say 'container images'
	local name
	context=$folder/context
	rm -rf "$images" "$context"
	mkdir -p "$images" "$context"
	: >"$logs/images.log"

	for name in kube-apiserver kube-controller-manager kube-scheduler etcd; do
		make kept "$(kubernetes_image $name)" scratch $name=usr/local/bin/$name
	done
	make kept "$(kubernetes_image coredns)" scratch coredns=coredns -- 'ENTRYPOINT ["/coredns"]'
	make kept "$(kubernetes_image pause)" scratch pause=pause -- 'ENTRYPOINT ["/pause"]'

	# kube-proxy, to compare with, needs packet filter tools below it.
	base "$context/files"
	copy_from_root "$context/files" /usr/sbin/{nft,xtables-nft-multi,conntrack,ipset} /bin/{ip,dash,busybox,kmod} \
		$(cd "$root" && printf '/%s\n' usr/lib/x86_64-linux-gnu/xtables/*.so)
	for name in ip{,6}tables{,-save,-restore}; do ln -sf xtables-nft-multi "$context/files/usr/sbin/$name"; done
	ln -sf dash "$context/files/usr/bin/sh"
	ln -s kmod "$context/files/usr/bin/modprobe"
	for name in cat sleep sed grep ls; do ln -s busybox "$context/files/usr/bin/$name"; done
	make kept $TOOLBOX scratch
	make kept "$(kubernetes_image kube-proxy)" $TOOLBOX kube-proxy=usr/local/bin/kube-proxy

	# Shell and network clients, below all images of the end-to-end tests. Its shell is not busybox, which would take
	# its own nc for the one in PATH.
	base "$context/files"
	copy_from_root "$context/files" /bin/{dash,bash,busybox,grep,sed,hostname,ps,ip,ss} \
		$(chroot "$root" dpkg -L coreutils | grep /bin/) \
		/usr/bin/{curl,wget,dig,nslookup,host,nc.openbsd,iperf,getent,nsenter}
	ln -sf dash "$context/files/usr/bin/sh"
	ln -s nc.openbsd "$context/files/usr/bin/nc"
	echo 'tries = 1' >"$context/files/etc/wgetrc" # as busybox's
	for name in $(chroot "$root" busybox --list); do
		[ -e "$context/files/usr/bin/$name" ] || ln -s busybox "$context/files/usr/bin/$name"
	done
	make base localhost/e2e-base:1 scratch
	mkdir "$context/files"
	ln -s agnhost "$context/files/agnhost-2"
	cp "$(go list -f '{{.Dir}}' k8s.io/kubernetes/test/images/agnhost)"/porter/localhost.{crt,key} "$context/files/"
	make kept $E2E/agnhost:2.63.0 localhost/e2e-base:1 agnhost=agnhost coredns=coredns -- \
		'EXPOSE 80 8080 8081 9376 5000' 'ENTRYPOINT ["/agnhost"]' 'CMD ["pause"]'
	make kept $E2E/regression-issue-74839:1.4 scratch regression-issue-74839=regression-issue-74839 -- \
		'ENTRYPOINT ["/regression-issue-74839"]'
	make kept $E2E/glibc-dns-testing:2.0.0 localhost/e2e-base:1 -- 'CMD ["bash"]'
	make kept $E2E/busybox:1.37.0-1 localhost/e2e-base:1 -- 'CMD ["sh"]'
	# The network tests ask of nginx only that it serves port 80.
	make kept $E2E/nginx:1.15-4 localhost/e2e-base:1 -- 'CMD ["busybox", "httpd", "-f", "-p", "80", "-h", "/var/www"]'
}

# ---- the image ----

node_image() {
	say 'the node image'
	local container
	tar -C "$root" -c . | docker import - lb-kind-root:1 >/dev/null
	container=$(docker run --detach --privileged --entrypoint sleep lb-kind-root:1 infinity)
	docker exec --detach --privileged "$container" containerd
	docker exec "$container" bash -c 'until ctr version >/dev/null 2>&1; do sleep 0.2; done'
	docker save $(sort -u "$images/kept") |
		docker exec --interactive --privileged "$container" ctr --namespace k8s.io images import \
			--label=io.cri-containerd.pinned=pinned --no-unpack --local - >"$logs/import.log"
	docker exec "$container" bash -c 'pkill -x containerd; while pgrep -x containerd >/dev/null; do sleep 0.1; done'
	docker commit --change 'ENV container=docker' --change 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]' \
		"$container" lb-kind-node:1 >/dev/null
	docker rm --force "$container" >/dev/null
	# `docker commit` cannot set this one.
	printf 'FROM lb-kind-node:1\nSTOPSIGNAL SIGRTMIN+3\n' | DOCKER_BUILDKIT=0 docker build --quiet --tag "$image" - >/dev/null
}

if [ "$image" = kind ]; then
	static kind . sigs.k8s.io/kind
	exit
fi
programs
if [ "$image" = programs ]; then exit; fi
packages
node
container_images
node_image
say "$image is ready"
