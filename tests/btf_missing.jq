# btf_missing.jq: names of the types and fields that are in the first BTF and not
# in the second.  Input (-s): two "bpftool btf dump -j" documents.  Offsets are
# not compared (CO-RE relocates them), nor are the types of plain fields.

def index_by_id: reduce .types[] as $t ({}; .["\($t.id)"] = $t);

# Strips typedefs and qualifiers.
def resolve($types; $id):
  $types["\($id)"] as $t
  | if $t == null then null
    elif $t.kind | IN("TYPEDEF", "CONST", "VOLATILE") then resolve($types; $t.type_id)
    else $t end;

# Members by name, those of unnamed structures and unions included.
def members($types):
  reduce (.members // [])[] as $m ({};
    if $m.name == "(anon)" then . + (resolve($types; $m.type_id) | members($types))
    else .[$m.name] = $m.type_id end);

def missing($ours; $theirs; $path):
  . as [$a, $b]
  | ($b | members($theirs)) as $there
  | ($a | members($ours)) | to_entries[]
  | if $there[.key] == null then "\($path).\(.key)"
    else resolve($ours; .value) as $x | resolve($theirs; $there[.key]) as $y
      | if $x.kind == "STRUCT" and (($y.kind // "") | IN("STRUCT", "UNION"))
          and $x.name == "(anon)"
        then [$x, $y] | missing($ours; $theirs; "\($path).x" | rtrimstr(".x")) else empty end
    end;

(.[0] | index_by_id) as $ours
| (.[1] | index_by_id) as $theirs
| (reduce (.[1].types[] | select(.kind == "STRUCT" and .name != "(anon)" and (.members | length) > 0)) as $t
    ({}; .[$t.name] //= $t)) as $named
| [$ours[] | select(.kind == "STRUCT" and .name != "(anon)" and (.members | length) > 0)][]
| . as $struct
| if $named[.name] == null then "struct \(.name)"
  else [., $named[.name]] | missing($ours; $theirs; "struct \($struct.name)") end
