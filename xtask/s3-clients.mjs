// The SDK for JavaScript against the server at the endpoint that is given; credentials are in the environment.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { Readable } from "node:stream";
import {
  CopyObjectCommand, CreateBucketCommand, DeleteBucketCommand, DeleteObjectsCommand, GetObjectCommand,
  GetObjectTaggingCommand, ListObjectVersionsCommand, ListObjectsV2Command, PutBucketVersioningCommand,
  PutObjectCommand, PutObjectTaggingCommand, S3Client,
} from "@aws-sdk/client-s3";
import { Upload } from "@aws-sdk/lib-storage";
import { getSignedUrl } from "@aws-sdk/s3-request-presigner";

const version = JSON.parse(readFileSync(new URL("node_modules/@aws-sdk/client-s3/package.json", import.meta.url))).version;
console.log(`SDK for JavaScript: ${version}, node ${process.version}`);
const client = new S3Client({ endpoint: process.argv[2], region: "us-east-1", forcePathStyle: true });
const Bucket = "javascript";
const small = randomBytes(3000);
const large = randomBytes(12 << 20);
const put = (Key, more) => client.send(new PutObjectCommand({ Bucket, Key, ...more }));
const get = (Key, more) => client.send(new GetObjectCommand({ Bucket, Key, ...more }));
const content = async (answer) => Buffer.from(await answer.Body.transformToByteArray());

await client.send(new CreateBucketCommand({ Bucket }));
const odd = "a/\u00fc +&=?.txt";
await put(odd, { Body: small, Metadata: { colour: "blue" }, ContentType: "text/plain" });
const got = await get(odd);
assert.deepEqual(await content(got), small);
assert.deepEqual([got.Metadata.colour, got.ContentType], ["blue", "text/plain"]);
for (const algorithm of ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"]) {
  const told = await put(algorithm, { Body: small, ChecksumAlgorithm: algorithm });
  const answer = await get(algorithm, { ChecksumMode: "ENABLED" });
  assert.deepEqual(await content(answer), small);
  assert.ok(told[`Checksum${algorithm}`]);
  assert.equal(answer[`Checksum${algorithm}`], told[`Checksum${algorithm}`]);
}
await put("stream", { Body: Readable.from([small, small]), ContentLength: 6000 });
assert.equal((await content(await get("stream"))).length, 6000);
const upload = { Bucket, Key: "large", Body: Readable.from(large) };
await new Upload({ client, params: upload, partSize: 5 << 20 }).done();
assert.deepEqual(await content(await get("large")), large);
const range = await get("large", { Range: "bytes=5242870-5242890" });
assert.deepEqual(await content(range), large.subarray(5242870, 5242891));
const CopySource = `${Bucket}/${encodeURIComponent(odd)}`;
await client.send(new CopyObjectCommand({ Bucket, Key: "copy", CopySource }));
assert.deepEqual(await content(await get("copy")), small);
const Tagging = { TagSet: [{ Key: "k", Value: "v" }] };
await client.send(new PutObjectTaggingCommand({ Bucket, Key: "copy", Tagging }));
const tags = await client.send(new GetObjectTaggingCommand({ Bucket, Key: "copy" }));
assert.deepEqual(tags.TagSet, Tagging.TagSet);
const link = await getSignedUrl(client, new GetObjectCommand({ Bucket, Key: "copy" }), { expiresIn: 60 });
assert.deepEqual(Buffer.from(await (await fetch(link)).arrayBuffer()), small);
await assert.rejects(put("copy", { Body: "x", IfNoneMatch: "*" }), { name: "PreconditionFailed" });
await assert.rejects(get("none"), { name: "NoSuchKey" });
const VersioningConfiguration = { Status: "Enabled" };
await client.send(new PutBucketVersioningCommand({ Bucket, VersioningConfiguration }));
await put("copy", { Body: "two" });
const page = await client.send(new ListObjectsV2Command({ Bucket, MaxKeys: 2 }));
assert.deepEqual([page.IsTruncated, page.Contents.length], [true, 2]);
const { Versions } = await client.send(new ListObjectVersionsCommand({ Bucket }));
assert.equal(Versions.filter(({ Key }) => Key === "copy").length, 2);
const Objects = Versions.map(({ Key, VersionId }) => ({ Key, VersionId }));
await client.send(new DeleteObjectsCommand({ Bucket, Delete: { Objects } }));
await client.send(new DeleteBucketCommand({ Bucket }));
