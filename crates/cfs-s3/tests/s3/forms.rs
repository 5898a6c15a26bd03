//! Forms: uploads from a page.

use crate::client::{Answer, Client};
use crate::pool::Pool;
use crate::protocol::hmac_sha1;

const KIND: &str = "Content-Type: multipart/form-data; boundary=edge\r\n";

/// Sends a form with these fields, and then its file.
pub fn post(client: &Client, path: &str, fields: &[(&str, &str)], file: (&str, &[u8])) -> Answer {
    let mut body = Vec::new();
    for (name, value) in fields {
        let part =
            format!("--edge\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        body.extend_from_slice(part.as_bytes());
    }
    let (name, content) = file;
    let head = format!(
        "--edge\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n"
    );
    body.extend_from_slice(head.as_bytes());
    body.extend_from_slice(content);
    body.extend_from_slice(b"\r\n--edge--\r\n");
    client.follow("POST", path, KIND, &body)
}

/// The fields of a signed form whose policy has a condition of the key.
struct Signed {
    policy: String,
    signature: String,
}

impl Signed {
    fn new(client: &Client, expiration: &str, of_key: &str) -> Self {
        let policy = format!(
            r#"{{"expiration": "{expiration}", "conditions": [{{"bucket": "bucket"}}, {of_key}]}}"#
        );
        let policy = base64_simd::STANDARD.encode_to_string(policy);
        Self {
            signature: hmac_sha1(&client.secret_access_key, &policy),
            policy,
        }
    }

    fn post(&self, client: &Client, key: &str, file: (&str, &[u8])) -> Answer {
        let fields = [
            ("key", key),
            ("AWSAccessKeyId", client.access_key_id.as_str()),
            ("policy", self.policy.as_str()),
            ("signature", self.signature.as_str()),
        ];
        post(client, "/bucket", &fields, file)
    }
}

const LATER: &str = "2099-01-01T00:00:00Z";

/// S3 puts the name of the file into the key before it looks at the policy.
#[test]
fn keys_are_judged_with_the_names_of_files_in_them() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let below = Signed::new(&root, LATER, r#"["starts-with", "$key", "user/"]"#);
    // Longer than what comes at once, so that the file passes behind the fields.
    let content = crate::pool::noise(300_000, 1);
    below
        .post(
            &root,
            "user/${filename}",
            ("C:\\pictures\\a b.txt", &content),
        )
        .is(204);
    assert!(root.get("/bucket/user/a b.txt").is(200).body == content);
    below
        .post(&root, "${filename}", ("user/x", b"1"))
        .fails(403, "AccessDenied");
    below
        .post(&root, "${filename}", ("b.txt", b"1"))
        .fails(403, "AccessDenied");
    let literal = Signed::new(&root, LATER, r#"["eq", "$key", "user/${filename}"]"#);
    literal
        .post(&root, "user/${filename}", ("b.txt", b"1"))
        .fails(403, "AccessDenied");
    let named = Signed::new(&root, LATER, r#"["eq", "$key", "user/b.txt"]"#);
    named
        .post(&root, "user/${filename}", ("b.txt", b"2"))
        .is(204);
    assert_eq!(root.get("/bucket/user/b.txt").is(200).body, b"2");
    assert_eq!(
        root.get("/bucket").all("Key"),
        ["user/a b.txt", "user/b.txt"]
    );
}

#[test]
fn forms_that_are_not_right_are_refused() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let any = r#"["starts-with", "$key", ""]"#;
    for time in ["2099-01-01 00:00:00+00:00", "2099-01-01", "soon", ""] {
        Signed::new(&root, time, any)
            .post(&root, "k", ("f", b"1"))
            .fails(400, "InvalidPolicyDocument");
    }
    Signed::new(&root, "2001-01-01T00:00:00Z", any)
        .post(&root, "k", ("f", b"1"))
        .fails(403, "AccessDenied");
    let mut wrong = Signed::new(&root, LATER, any);
    wrong.signature.insert(0, 'x');
    wrong
        .post(&root, "k", ("f", b"1"))
        .fails(403, "SignatureDoesNotMatch");
    // Who names a key means to sign.
    let right = Signed::new(&root, LATER, any);
    let fields = [
        ("key", "k"),
        ("AWSAccessKeyId", root.access_key_id.as_str()),
        ("policy", right.policy.as_str()),
    ];
    post(&root, "/bucket", &fields, ("f", b"1")).fails(400, "InvalidArgument");
    post(&root, "/bucket", &fields[..1], ("f", b"1")).fails(403, "AccessDenied");
    root.follow("POST", "/bucket", KIND, b"--edge\r\nno form\r\n")
        .fails(400, "MalformedPOSTRequest");
    root.get("/bucket/k").fails(404, "NoSuchKey");
    right.post(&root, "k", ("f", b"1")).is(204);
}
