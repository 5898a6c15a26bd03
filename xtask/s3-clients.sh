#!/usr/bin/env bash
# Real S3 clients against a server of our own: what they put comes back through them, and is in the mount.
# usage: s3-clients.sh CFS SCRATCH; SCRATCH keeps the clients that were installed, for the next run.
set -euo pipefail
cfs=$(realpath "$1")
here=$(realpath "$(dirname "$0")")
mkdir -p "$2"
scratch=$(realpath "$2")
cd "$scratch"
unset AWS_CA_BUNDLE AWS_PROFILE

# Clients: those on the path, else from PyPI, npm and the packages of Debian, without touching the system.
export PATH="$scratch/debian/usr/bin:$scratch/python/bin:$PATH"
export PYTHONPATH="$scratch/debian/usr/lib/python3/dist-packages"
if ! [ -x python/bin/aws ]; then
    python3 -m venv python
    python/bin/pip -q install awscli boto3 python-dateutil
fi
for name in restic rclone s3cmd; do
    if ! command -v "$name" > /dev/null; then
        (mkdir -p debs && cd debs && apt-get -q download "$name" && dpkg -x "$name"_*.deb ../debian)
    fi
done
if command -v npm > /dev/null && ! [ -d node/node_modules/@aws-sdk/client-s3 ]; then
    mkdir -p node
    npm install --silent --no-audit --no-fund --prefix node \
        @aws-sdk/client-s3 @aws-sdk/lib-storage @aws-sdk/s3-request-presigner
fi

run=$(mktemp -d "$scratch/run.XXXXXX")
server=
clean_up() {
    if [ -n "$server" ]; then
        kill "$server" && wait "$server" || true
    fi
    umount -l "$run/mnt" 2> /dev/null || true
    rm -rf "$run"
}
trap clean_up EXIT
cd "$run"
mkdir mnt source
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$cfs" server --data pool --mount mnt --s3 "127.0.0.1:$port" > out 2> err &
server=$!
for _ in $(seq 300); do
    grep -q ^ready out && break
    sleep 0.1
done
grep -q ^ready out || { cat err; exit 1; }

AWS_ACCESS_KEY_ID=$(awk '$1 == "access_key_id" { print $2 }' err)
AWS_SECRET_ACCESS_KEY=$(awk '$1 == "secret_access_key" { print $2 }' err)
endpoint=http://127.0.0.1:$port
export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_DEFAULT_REGION=us-east-1 AWS_ENDPOINT_URL=$endpoint

for number in $(seq 200); do
    mkdir -p "source/dir$((number % 10))"
    head -c $((number * 700)) /dev/urandom > "source/dir$((number % 10))/file $number"
done
head -c 40000000 /dev/urandom > source/large
: > "source/odd +%ä name"

echo "aws: $(aws --version)"
aws s3 mb s3://bucket
aws s3 sync source s3://bucket/aws --only-show-errors
aws s3 sync s3://bucket/aws back-aws --only-show-errors
diff -r source back-aws
diff -r source mnt/bucket/aws
aws s3 cp s3://bucket/aws s3://bucket/copy --recursive --only-show-errors
diff -r source mnt/bucket/copy
aws s3 rm s3://bucket/aws --recursive --only-show-errors
test ! -e mnt/bucket/aws

echo "boto3"
python - << 'PYTHON'
import boto3
from botocore.config import Config
# Links are signed with version 2 in this region unless something else is said.
client = boto3.client("s3", config=Config(signature_version="s3v4"))
client.put_object(Bucket="bucket", Key="boto/key", Body=b"one", Metadata={"colour": "blue"})
got = client.get_object(Bucket="bucket", Key="boto/key")
assert got["Body"].read() == b"one" and got["Metadata"] == {"colour": "blue"}, got
link = client.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "boto/key"})
import urllib.request
assert urllib.request.urlopen(link).read() == b"one"
pages = client.get_paginator("list_objects_v2").paginate(Bucket="bucket", PaginationConfig={"PageSize": 7})
keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
assert keys == sorted(keys) and len(keys) == 203, len(keys)
PYTHON

echo "restic: $(restic version)"
export RESTIC_PASSWORD=secret RESTIC_REPOSITORY="s3:$endpoint/bucket/restic"
restic -q init
restic -q backup source
restic -q check --read-data
restic -q restore latest --target back-restic
diff -r source back-restic/source
restic -q forget --prune --keep-last 1

echo "rclone: $(rclone version | head -1)"
export RCLONE_CONFIG_C_TYPE=s3 RCLONE_CONFIG_C_PROVIDER=Other RCLONE_CONFIG_C_ENDPOINT=$endpoint
export RCLONE_CONFIG_C_ACCESS_KEY_ID=$AWS_ACCESS_KEY_ID RCLONE_CONFIG_C_SECRET_ACCESS_KEY=$AWS_SECRET_ACCESS_KEY
rclone -q sync source c:bucket/rclone
rclone -q check source c:bucket/rclone
rclone -q sync c:bucket/rclone back-rclone
diff -r source back-rclone
rclone -q check mnt/bucket/copy c:bucket/copy
rclone -q purge c:bucket/rclone

s3cmd=$(command -v s3cmd)
echo "s3cmd: $(python "$s3cmd" --version)"
our_s3cmd() {
    python "$s3cmd" -q --no-progress --no-ssl --host="127.0.0.1:$port" --host-bucket="127.0.0.1:$port" \
        --access_key="$AWS_ACCESS_KEY_ID" --secret_key="$AWS_SECRET_ACCESS_KEY" -c /dev/null "$@"
}
our_s3cmd put --recursive source/ s3://bucket/s3cmd/
mkdir back-s3cmd
our_s3cmd get --recursive s3://bucket/s3cmd/ back-s3cmd/
diff -r source back-s3cmd
our_s3cmd del --recursive --force s3://bucket/s3cmd/

if [ -d "$scratch/node/node_modules/@aws-sdk/client-s3" ]; then
    # Modules are looked for beside the script.
    cp "$here/s3-clients.mjs" "$scratch/node/"
    node --no-warnings "$scratch/node/s3-clients.mjs" "$endpoint"
else
    echo "SKIPPED: the SDK for JavaScript, since there is no npm here" >&2
fi

aws s3 rb s3://bucket --force > removed
"$cfs" admin fsck --data pool
echo "all clients agree"
