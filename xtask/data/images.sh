#!/usr/bin/env bash
# Makes DIR/images, a disk image at five states (2.3 GB), of the data sets DIR/versions and DIR/logs: a machine whose packages
# are brought to later releases, one or two at a time, and whose log grows. The same bytes every time; root is not needed.
# usage: images.sh DIR
set -euo pipefail
export LC_ALL=C
cd "$1"
uuid=c1a0def5-0000-4000-8000-000000000001
log_bytes=$((16 << 20))

# Commands of debugfs that write a release to /lib/NAME, and that remove it.
install() {
    find "versions/$1" -printf '%y %P\n' | sort -k 2 | while read -r kind path; do
        to=/lib/${1%-*}${path:+/$path}
        case $kind in
            d) printf 'mkdir "%s"\n' "$to" ;;
            f) printf 'cd "%s"\nwrite "%s" "%s"\n' "${to%/*}" "versions/$1/$path" "${to##*/}" ;;
        esac
    done
}
remove() {
    find "versions/$1" -depth -printf '%y %P\n' | while read -r kind path; do
        to=/lib/${1%-*}${path:+/$path}
        case $kind in
            d) printf 'rmdir "%s"\n' "$to" ;;
            f) printf 'rm "%s"\n' "$to" ;;
        esac
    done
}

# A state after the one before: releases go where older ones of them were, and 16 MiB are added to the log.
declare -A installed
state() {
    number=$1
    shift
    image=images/state$number.img
    if ((number == 0)); then
        mke2fs -q -t ext4 -b 4096 -J size=16 -m 0 -U $uuid -E hash_seed=$uuid "$image" 448M > /dev/null
    else
        cp "images/state$((number - 1)).img" "$image"
    fi
    head -c $(((number + 1) * log_bytes)) logs/app.json.0 > "$scratch/app.json"
    {
        echo "set_current_time 202401$((number + 10))"
        if ((number == 0)); then printf 'mkdir /lib\nmkdir /log\n'; else echo 'rm /log/app.json'; fi
        for release; do
            name=${release%-*}
            if [ -n "${installed[$name]-}" ]; then remove "${installed[$name]}"; fi
            install "$release"
            installed[$name]=$release
        done
        printf 'cd /log\nwrite "%s" app.json\n' "$scratch/app.json"
    } > "$scratch/commands"
    # It goes on after commands that fail, and ends well.
    debugfs -w -f "$scratch/commands" "$image" 2> "$scratch/said" > /dev/null
    if grep -v '^debugfs [0-9]' "$scratch/said" >&2; then exit 1; fi
    e2fsck -fn "$image" > /dev/null 2>&1
    echo "$image: $*"
}

export E2FSPROGS_FAKE_TIME=1704067200
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
mkdir images
state 0 Django-4.2.1 botocore-1.29.0 numpy-1.26.0 pandas-2.1.0 scipy-1.11.1
state 1 Django-4.2.2
state 2 botocore-1.29.20 numpy-1.26.1
state 3 Django-4.2.3 pandas-2.1.1
state 4 botocore-1.29.40 scipy-1.11.2
