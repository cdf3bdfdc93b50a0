#!/usr/bin/env bats
# Containers of Podman and Docker, in a machine that has them (make containercheck): what
# docs/containers.md says is fused is, the rest is TCP's, and every byte arrives.

load ../helpers

IMAGE=/tmp/image
WWW=$IMAGE/www

# nginx, curl and what they need, as the containers have it
make_image() {
  local program
  mkdir -p "$IMAGE"/{bin,dev,etc,proc,run,sys,tmp,www,var/lib/nginx,var/log/nginx}
  cp /bin/busybox "$IMAGE/bin"
  ln -s busybox "$IMAGE/bin/sh"
  ln -s busybox "$IMAGE/bin/sleep"
  for program in nginx curl; do
    # shellcheck disable=SC2046 # a word a library
    cp -L --parents "$(command -v "$program")" $(ldd "$(command -v "$program")" | grep -o '/[^ ]*') "$IMAGE"
  done
  echo root:x:0:0::/:/bin/sh >"$IMAGE/etc/passwd"
  echo root:x:0: >"$IMAGE/etc/group"
  cat >"$IMAGE/etc/nginx.conf" <<'END'
user root; worker_processes 1; pid /tmp/nginx.pid; error_log stderr; daemon off;
events {}
http { access_log off; server { listen 8080; listen [::]:8080; root /www; } }
END
  head -c 1000 /dev/urandom >"$WWW/small"
  head -c 1000000 /dev/urandom >"$WWW/large"
  for _ in {1..20}; do cat "$WWW/small"; done >/tmp/answers
  cat "$WWW/large" >>/tmp/answers
  tar -C "$IMAGE" -cf /tmp/image.tar .
}

setup_file() {
  mkdir -p /etc/containers /dev/shm /dev/pts
  mount -t tmpfs tmpfs /dev/shm
  mount -t devpts devpts /dev/pts
  printf '%s\n' '[engine]' 'cgroup_manager = "cgroupfs"' 'events_logger = "file"' >/etc/containers/containers.conf
  make_image
  podman import --quiet --change 'CMD ["nginx", "-c", "/etc/nginx.conf"]' /tmp/image.tar web >/dev/null
  plain_address
}

teardown() {
  podman pod rm --all --force --time 0 >/dev/null
  podman rm --all --force --time 0 >/dev/null
  [[ ! ${DOCKERD-} ]] || end_docker
  [[ ! ${CLIENT-} ]] || kill "$CLIENT" 2>/dev/null || true
  unload --quiet
  assert_nothing_left
}

# run_web NAME [OPTION...]: a container with nginx; run_client: one that sleeps
run_web() { podman run --quiet --detach --name "$1" "${@:2}" web >/dev/null; }
run_client() { podman run --quiet --detach --name "$1" "${@:2}" web sleep infinity >/dev/null; }

address_of() { podman inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$1"; }

# answers URL [COMMAND...]: 20 small answers and a large one, on one connection that curl makes
# as COMMAND runs it; every byte is right
answers() {
  wait_for 30 "${@:2}" curl -sSf --output /dev/null "$1/small"
  "${@:2}" curl -sSf --max-time 120 "$1/small?[1-20]" "$1/large" | cmp - /tmp/answers
}

# fused URL [COMMAND...], plain URL [COMMAND...]: as answers; each request and answer is fused, or
# none is
fused() {
  local before
  before=$(counter fused_messages)
  answers "$@"
  echo "fused $*: $(counters)"
  (($(counter fused_messages) - before >= 40))
}
plain() {
  local before
  before=$(counter fused_messages)
  answers "$@"
  echo "plain $*: $(counters)"
  (($(counter fused_messages) == before))
}

@test "Podman: containers on its bridge, and the host to one of them" {
  run_web a
  run_client b
  load
  plain "http://$(address_of a):8080" podman exec b
  load --net 10.88.0.0/16
  fused "http://$(address_of a):8080" podman exec b
  fused "http://$(address_of a):8080"
}

@test "Podman: a published port at the host's address, from the host and from a container; at 127.0.0.1" {
  run_web a --publish 8081:8080
  run_client b
  load --net 10.88.0.0/16 --net local
  fused "http://$PLAIN_ADDRESS:8081"
  fused "http://$PLAIN_ADDRESS:8081" podman exec b
  plain http://127.0.0.1:8081
}

@test "Podman: the containers of a pod, on its loopback, in the default load" {
  podman pod create --name pod >/dev/null
  run_web a --pod pod
  run_client b --pod pod
  load
  fused http://127.0.0.1:8080 podman exec b
}

@test "Podman, rootless with pasta: every byte arrives, inside a pod and by a published port" {
  local as
  id user >/dev/null 2>&1 || useradd --create-home user
  mkdir -p /run/user/1000 && chown user /run/user/1000
  chmod 666 /dev/net/tun
  as=(runuser -u user -- env HOME=/home/user XDG_RUNTIME_DIR=/run/user/1000 podman)
  (cd / && "${as[@]}" import --quiet --change 'CMD ["nginx", "-c", "/etc/nginx.conf"]' /tmp/image.tar web >/dev/null)
  load
  (cd / && "${as[@]}" run --quiet --detach --name a --network pasta --publish 8082:8080 web >/dev/null)
  answers http://127.0.0.1:8082
  (cd / && answers http://127.0.0.1:8080 "${as[@]}" exec a)
  (cd / && "${as[@]}" rm --all --force --time 0)
}

start_docker() {
  dockerd >"$BATS_TEST_TMPDIR/dockerd" 2>&1 3>&- &
  DOCKERD=$!
  wait_for 120 docker info >/dev/null 2>&1 || { cat "$BATS_TEST_TMPDIR/dockerd" && return 1; }
  docker image inspect web >/dev/null 2>&1 ||
    docker import --change 'CMD ["nginx", "-c", "/etc/nginx.conf"]' /tmp/image.tar web >/dev/null
}

end_docker() {
  local all
  mapfile -t all < <(docker ps --all --quiet)
  ((${#all[@]} == 0)) || docker rm --force "${all[@]}" >/dev/null
  kill "$DOCKERD"
  wait "$DOCKERD" || true
}

@test "Docker: containers on its bridge, and published ports with docker-proxy" {
  local address
  start_docker
  docker run --detach --name a --publish 8083:8080 web >/dev/null
  docker run --detach --name b web sleep infinity >/dev/null
  address=$(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' a)
  load --net 172.17.0.0/16 --net local
  fused "http://$address:8080" docker exec b
  fused "http://$PLAIN_ADDRESS:8083"
  answers http://127.0.0.1:8083 # by docker-proxy, or by NAT
}

@test "Docker: pause, restart and removal of a container with fused connections" {
  local address before
  start_docker
  docker run --detach --name a web >/dev/null
  address=$(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' a)
  load --net 172.17.0.0/16
  fused "http://$address:8080"
  # paused while it sends
  (curl -sSf --limit-rate 200K --max-time 120 "http://$address:8080/large" | cmp - "$WWW/large") 3>&- &
  CLIENT=$!
  sleep 1
  docker pause a >/dev/null
  sleep 3
  docker unpause a >/dev/null
  wait "$CLIENT"
  # restarted and removed while it sends: the client sees an end, as by TCP
  for how in restart "rm --force"; do
    curl -sS --limit-rate 100K --max-time 60 "http://$address:8080/large" >/dev/null 2>"$BATS_TEST_TMPDIR/error" 3>&- &
    CLIENT=$!
    sleep 1
    # shellcheck disable=SC2086 # two words
    docker $how --time 0 a >/dev/null 2>&1 || docker $how a >/dev/null
    before=$SECONDS
    ! wait "$CLIENT"
    ((SECONDS - before < 30))
    address=$(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' a 2>/dev/null) || break
    fused "http://$address:8080"
  done
  wait_for 10 map_is_empty
}

map_is_empty() { [ "$("$here/status.sh" --json 3>&- | jq .map.entries)" -eq 0 ]; }

# An image of this machine's own system, with the project's package
make_sockfuse_image() {
  ! podman image exists sockfuse || return 0
  dpkg -i --force-depends "$here"/dist/sockfuse_*.deb >/dev/null
  tar -C / --one-file-system --exclude='./tmp/*' --exclude=./src --exclude=./var/lib/containers --exclude=./var/lib/docker \
    --exclude=./usr/lib/modules -cf - . | podman import --quiet - sockfuse >/dev/null
}

in_container() {
  podman run --quiet --rm --privileged --pid host --network host --volume /sys/fs/bpf:/sys/fs/bpf --volume /sys/fs/cgroup:/sys/fs/cgroup \
    sockfuse "$@"
}

@test "sockfuse in a privileged container: on for the host, loaded again from the host, and ended from the container" {
  make_sockfuse_image
  in_container sockfuse-load --quiet
  "$TRAFFIC" echo 127.0.0.1 127.0.0.1 1000
  [ "$(counter fused_bytes)" -eq 2000 ]
  load
  "$TRAFFIC" echo 127.0.0.1 127.0.0.1 1000
  [ "$(counter fused_bytes)" -eq 4000 ]
  in_container sockfuse-status --json | jq -e '.loaded and .damage == []'
  in_container sockfuse-unload --quiet
}

@test "the DaemonSet of deploy/kubernetes, run by podman kube play with its mounts and capabilities: on, and what is said on loopback is fused" {
  make_sockfuse_image
  podman kube play "$here/deploy/kubernetes/sockfuse.yaml"
  "$TRAFFIC" echo 127.0.0.1 127.0.0.1 1000
  [ "$(counter fused_bytes)" -eq 2000 ]
  podman exec "$(podman ps --format '{{.Names}}' | grep -x '.*-sockfuse')" sockfuse-status --json | jq -e '.loaded and .damage == []'
  podman exec "$(podman ps --format '{{.Names}}' | grep -x '.*-sockfuse')" sockfuse-unload --quiet
  podman kube down "$here/deploy/kubernetes/sockfuse.yaml" >/dev/null
}
