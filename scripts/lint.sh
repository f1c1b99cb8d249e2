#!/usr/bin/env bash
# scripts/lint.sh - rules that no compiler checks: include direction, size budgets, banned calls, open ends.
# Prints each offence as file:line and exits 1 if there is one.
set -uo pipefail
cd "$(dirname "$0")/.."
bad=0
say() { echo "lint: $*"; bad=1; }

# 1. Includes point one way: base <- {proto, pruning, transport} <- shard <- daemon; client sees base and proto only.
declare -A may=(
    [base]="base" [proto]="base proto" [pruning]="base pruning" [transport]="base transport"
    [shard]="base proto pruning transport shard" [client]="base proto client"
    [daemon]="base proto pruning transport shard daemon"
)
for dir in "${!may[@]}"; do
    allowed="^(${may[$dir]// /|})/"
    while IFS=: read -r file line text; do
        inc=$(sed -E 's/.*#include "([^"]+)".*/\1/' <<<"$text")
        case "$inc" in
        */*) [[ "$inc" =~ $allowed ]] || say "$file:$line: $dir may not include $inc" ;;
        *) [ "$inc" = winnow_version.h ] || { [ "$dir" = client ] && [ "$inc" = winnow.h ]; } || say "$file:$line: include '$inc' by its path from the root" ;;
        esac
    done < <(grep -rnE --include='*.[ch]' '^#include "' "$dir" 2>/dev/null)
done

# 2. Budgets: header 200 lines, file 700, 120 columns.
while read -r n file; do
    [ "$file" = total ] && continue
    case "$file" in
    *.h) [ "$n" -le 200 ] || say "$file: $n lines, a header has 200 at most" ;;
    *) [ "$n" -le 700 ] || say "$file: $n lines, a file has 700 at most" ;;
    esac
done < <(git ls-files '*.c' '*.h' '*.cu' '*.cuh' | xargs -r wc -l)
while IFS=: read -r file line _; do
    say "$file:$line: over 120 columns"
done < <(git ls-files '*.c' '*.h' '*.cu' '*.cuh' | xargs -r grep -nE '^.{121,}$')

# 3. Calls that invite mistakes, and ends left open.
while IFS=: read -r file line text; do
    say "$file:$line: banned call:$text"
done < <(git ls-files '*.c' '*.h' | xargs -r grep -nE '\b(strcpy|strcat|sprintf|vsprintf|strtok|atoi|atol|atof|gets)\(')
while IFS=: read -r file line text; do
    say "$file:$line: open end:$text"
done < <(git ls-files -- '*.c' '*.h' '*.sh' '*.py' '*.md' ':!scripts/lint.sh' | xargs -r grep -nE '\b(TODO|FIXME|XXX)\b')

# 4. Only main may end the process.
while IFS=: read -r file line text; do
    say "$file:$line: exit outside main:$text"
done < <(git ls-files 'base/*.c' 'proto/*.c' 'pruning/*.c' 'transport/*.c' 'shard/*.c' | grep -vE 'base/status.c|transport/mpi' |
    xargs -r grep -nE '\b(exit|_exit|abort)\(')

# 5. A variable that the code reads is one that wn_config_unknown_env knows: an option's, or in its list.
while read -r name; do
    option=${name#WINNOW_} option=${option,,}
    grep -q "\"${option//_/-}\"" daemon/config_table.c || grep -q "\"$name\"" daemon/config.c ||
        say "$name is read, and daemon/config.c takes it for a mistake"
done < <(git ls-files 'base/*.c' 'proto/*.c' 'pruning/*.c' 'transport/*.c' 'shard/*' 'daemon/*.c' 'client/*.c' |
    xargs -r grep -hoE 'getenv\("WINNOW_[A-Z_]+' | cut -d'"' -f2 | sort -u)

# 6. A file begins with its path and what it is for.
while read -r file; do
    head -2 "$file" | grep -qF "$file - " || say "$file:1: its first lines do not say \"$file - what it is for\""
done < <(git ls-files 'base/*.[ch]' 'proto/*.[ch]' 'pruning/*.[ch]' 'transport/*.[ch]' 'shard/*.h' 'daemon/*.[ch]' \
    'client/*.[ch]' ':!client/winnow.h')

[ $bad -eq 0 ] && echo "lint: clean"
exit $bad
