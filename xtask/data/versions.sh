#!/usr/bin/env bash
# Makes DIR/versions: successive releases of Python packages, unpacked side by side (1.74 GB, 58,692 files). They come from
# PyPI, with pip.
# usage: versions.sh DIR
set -euo pipefail
mkdir -p "$1/versions"
cd "$1/versions"
wheels=$(mktemp -d)
trap 'rm -r "$wheels"' EXIT

releases() {
    name=$1
    shift
    for version; do
        pip -q download --no-deps --only-binary=:all: --python-version 3.11 --platform manylinux2014_x86_64 \
            --platform manylinux_2_17_x86_64 -d "$wheels" "$name==$version"
        python3 -m zipfile -e "$wheels"/*.whl "$name-$version"
        rm "$wheels"/*.whl
    done
}
releases Django 4.2.{1,2,3,4,5,6,7,8}
releases botocore 1.29.{0,20,40,60,80,100,120,140}
releases scipy 1.11.{1,2,3,4}
releases numpy 1.26.{0,1,2,3,4}
releases pandas 2.1.{0,1,2,3,4}
