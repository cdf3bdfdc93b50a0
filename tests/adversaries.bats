#!/usr/bin/env bats
# What went wrong once goes wrong no more: programs that made it happen, in some hundred
# or thousand rounds each.  make adversaries gives them longer.

load helpers

setup_file() {
  export ADVERSARY_SECONDS=3
  load
}

teardown_file() {
  unload --quiet
  assert_nothing_left
}

# as_on_tcp ADVERSARY
as_on_tcp() {
  run "$here/tests/adversaries/run.sh" "$ADVERSARY_SECONDS" "$1"
  echo "$output"
  [[ $output != *skipped=1* ]] || skip "not on this kernel"
  [ "$status" -eq 0 ]
}

@test "bytes that were not read before the peer closed can be read, after a refused connect too" {
  as_on_tcp refused_connect
}

@test "a send does not fail because the other end leaves the map" {
  as_on_tcp leaving_map
}

@test "a send does not fail because the other end sends two bytes by TCP at that moment" {
  as_on_tcp leaving_map_lowat
}

@test "a message that meets the peer's close fails no more often than the kernel makes it" {
  as_on_tcp closing_peer
}

@test "a message that meets the peer's half close arrives" {
  as_on_tcp half_close
}

@test "a message that is under way while both ends are to leave the map arrives" {
  as_on_tcp under_way
}

@test "a reader that io_uring's poll tells once gets every byte" {
  as_on_tcp uring_seam
}

@test "a reader that a signal tells once gets every byte" {
  as_on_tcp sigio
}

@test "a reader whose level-triggered epoll an edge-triggered one watches gets every byte" {
  as_on_tcp nested_epoll
}

@test "TCP_ZEROCOPY_RECEIVE gets the bytes in the order in which they were sent" {
  as_on_tcp zerocopy_receive
}

# Once in some thousand rounds one does (docs/semantics.md), so it has two chances.
@test "of several threads that wait in recv on one socket none sleeps while bytes wait" {
  "$here/tests/adversaries/run.sh" "$ADVERSARY_SECONDS" two_readers || as_on_tcp two_readers
}

@test "a reader asleep inside TCP that is woken for nothing gets the byte that is sent at that moment" {
  as_on_tcp woken_reader
}

@test "several threads send and receive on both ends of a connection that leaves the map" {
  as_on_tcp thread_pairs
}

@test "streams arrive in order while other processors handle their acknowledgments" {
  as_on_tcp acks_elsewhere
}

@test "whatever many ends do at once, every byte arrives that arrives by TCP" {
  as_on_tcp schedule
}
