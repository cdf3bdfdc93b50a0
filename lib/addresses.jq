# Numbers and networks as the bytes of a map's key, and back.  load.sh writes them so, and
# status.jq reads them.  A network is struct net_key: the length of its prefix, 32 bits in the
# host's byte order, and 16 bytes of address, IPv4 as ::ffff:a.b.c.d.

def hex: [while(. > 0; . / 16 | floor) | . % 16] | reverse | map("0123456789abcdef"[.:. + 1]) | join("") | if . == "" then "0" else . end;

def from_hex: ascii_downcase | explode | map(if . > 96 then . - 87 else . - 48 end) | reduce .[] as $digit (0; . * 16 + $digit);

# From bytes, the lowest first.  $one, an argument of jq, is what the bytes 1 and 0 are here.
def in_host_order: if $ARGS.named.one == 1 then . else reverse end;

def port_key: [. % 256, (. / 256 | floor)] | in_host_order;

# The bytes that stand between two colons; 256, which is none, if that is no part of an address
def part:
  if test("^[0-9a-fA-F]{1,4}$") then from_hex | [(. / 256 | floor), . % 256]
  elif test("^[0-9]{1,3}([.][0-9]{1,3}){3}$") then split(".") | map(tonumber)
  else [256] end;

# 16 bytes; nothing if it is no address.  An IPv4 address can only be the end of one.
def address:
  select(test("[.].*:") | not)
  | [(if test("[.]") and (test(":") | not) then "::ffff:" + . else . end) | split("::")[] | [split(":")[] | part[]]]
  | if length == 2 then .[0] + [range(16 - (add | length)) | 0] + .[1] elif length == 1 then .[0] else [] end
  | select(length == 16 and all(. < 256));

# From "10.0.0.0/8", or from an address, which is a network of its own; nothing if it is neither
def net_key:
  capture("^(?<address>[^/]+)(/(?<length>0|[1-9][0-9]{0,2}))?$")
  | (if .address | test(":") then 0 else 96 end) as $before
  | ((.length // "\(128 - $before)" | tonumber) + $before) as $length
  | select($length <= 128)
  | ([$length, 0, 0, 0] | in_host_order) + (.address | address);

# The other way round, from a key as bpftool gives its bytes
def network:
  map(ltrimstr("0x") | from_hex)
  | (.[0] + .[3]) as $length # 128 at the most, in the host's byte order
  | .[4:]
  | if .[:12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255] and $length >= 96 then
      "\(.[12:] | map(tostring) | join("."))/\($length - 96)"
    else
      "\([range(0; 16; 2) as $i | .[$i] * 256 + .[$i + 1] | hex] | join(":") | sub("(^|:)0(:0)+(:|$)"; "::"))/\($length)"
    end;
