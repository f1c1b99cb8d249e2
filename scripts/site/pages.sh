#!/usr/bin/env bash
# scripts/site/pages.sh WINNOW OUT VERSION - man pages winnow.1 and winnowd.8, and completion for bash, made of what
# --help says when it is built.
set -euo pipefail
winnow=$1 winnowd=${1%/*}/winnowd out=$2 version=$3
mkdir -p "$out"

# The words of a list of commands: two blanks, a word, what it does.
words() { sed -n 's/^  \([a-z][a-z-]*\)  .*/\1/p'; }
commands=$("$winnow" --help | words)
roles=$("$winnowd" --help | words)
bench=$("$winnow" bench --help | sed -n '1s/^Usage: winnow bench \([a-z|]*\) .*/\1/p' | tr '|' ' ')
[ -n "$commands" ] && [ -n "$roles" ] && [ -n "$bench" ] || { echo "$0: --help does not look as it did" >&2; exit 1; }

# Text as it is: nothing in it is an order to roff.
verbatim() { printf '.nf\n'; sed -e 's/\\/\\e/g' -e 's/-/\\-/g' -e "s/^[.']/\\\\\&&/"; printf '.fi\n'; }

page() { # PROGRAM SECTION WHAT SEE
    printf '.TH %s %s "" "Winnow %s"\n.SH NAME\n%s \\- %s\n.SH SYNOPSIS\n' "${1^^}" "$2" "$version" "$1" "$3"
    shift 3
}

{
    page winnow 1 "ask, serve and watch large vision-language models"
    "$winnow" --help | verbatim
    for c in $commands; do
        printf '.SH WINNOW %s\n' "${c^^}"
        "$winnow" "$c" --help | verbatim
        [ "$c" = bench ] || continue
        for b in $bench; do
            printf '.SH WINNOW BENCH %s\n' "${b^^}"
            "$winnow" bench "$b" --help | verbatim
        done
    done
    printf '.SH SEE ALSO\n.BR winnowd (8)\n'
} >"$out/winnow.1"

{
    page winnowd 8 "the processes of a Winnow service"
    "$winnowd" --help | verbatim
    for r in $roles; do
        printf '.SH WINNOWD %s\n' "${r^^}"
        "$winnowd" "$r" --help | verbatim
    done
    printf '.SH SEE ALSO\n.BR winnow (1)\n'
} >"$out/winnowd.8"

# "name) options='--a --b' ;;" of each command
options() { # LABEL COMMAND...
    local label=$1
    shift
    printf "    '%s') options='%s' ;;\n" "$label" \
        "$("$@" --help | grep -oE '(^|[ ,])--?[a-z][a-z0-9-]+' | tr -d ' ,' | sort -u | paste -sd' ')"
}
{
    printf '# completion of winnow for bash\n_winnow() {\n    local word=$2 before=$3 options= command=${COMP_WORDS[1]}\n'
    printf '    [ "$command" != bench ] || [ "$COMP_CWORD" -lt 3 ] || command="bench ${COMP_WORDS[2]}"\n'
    printf '    case "$command" in\n'
    for c in $commands; do options "$c" "$winnow" "$c"; done
    for b in $bench; do options "bench $b" "$winnow" bench "$b"; done
    printf '    esac\n    COMPREPLY=()\n'
    printf '    if [ "$COMP_CWORD" -eq 1 ]; then\n        COMPREPLY=($(compgen -W "%s --help --version" -- "$word"))\n' \
        "$(paste -sd' ' <<<"$commands")"
    printf '    elif [ "$before" = bench ] && [ "$COMP_CWORD" -eq 2 ]; then\n'
    printf '        COMPREPLY=($(compgen -W "%s" -- "$word"))\n' "$bench"
    printf '    elif [[ $word == -* ]]; then\n        COMPREPLY=($(compgen -W "$options --help" -- "$word"))\n    fi\n}\n'
    printf 'complete -o default -F _winnow winnow\n' # what is no word of ours is a file
} >"$out/winnow.bash"
