//! A small S3 client: HTTP/1.1 over a socket, and signatures of version 4.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// Who signs, and to whom.
#[derive(Clone)]
pub struct Client {
    pub address: SocketAddr,
    pub access_key_id: String,
    pub secret_access_key: String,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header; empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(other, _)| other == name);
        found.map_or("", |(_, value)| value)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Insists on a status.
    #[track_caller]
    pub fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{:?}\n{}", self.headers, self.text());
        self
    }

    /// Insists on an error, and that it says something.
    #[track_caller]
    pub fn fails(self, status: u16, code: &str) {
        let wanted = format!("<Code>{code}</Code>");
        let text = self.text();
        assert!(
            self.status == status && text.contains(&wanted),
            "{}: {text}",
            self.status
        );
        let said = self.all("Message").pop().unwrap_or_default();
        assert!(!said.is_empty(), "{text}");
    }

    /// What is between these tags, everywhere.
    pub fn all(&self, tag: &str) -> Vec<String> {
        let text = self.text();
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        let parts = text.split(&open).skip(1);
        parts
            .map(|part| part.split(&close).next().unwrap_or_default().to_owned())
            .collect()
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes any text");
        text
    })
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length will do");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// A part of a path or query, with all that is not unreserved encoded.
pub fn encode(text: &str, keep_slashes: bool) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte));
            }
            b'/' if keep_slashes => encoded.push('/'),
            _ => write!(encoded, "%{byte:02X}").expect("a string takes any text"),
        }
    }
    encoded
}

/// `YYYYMMDDTHHMMSSZ` (Howard Hinnant's civil_from_days).
fn amz_date(seconds: u64) -> String {
    let days = (seconds / 86_400) as i64 + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let rest = seconds % 86_400;
    format!(
        "{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// A form as a body.
fn form(fields: &[(&str, &str)]) -> String {
    let pair =
        |(name, value): &(&str, &str)| format!("{}={}", encode(name, false), encode(value, false));
    let pairs: Vec<String> = fields.iter().map(pair).collect();
    pairs.join("&")
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

/// A request that has not been signed yet.
pub struct Request<'a> {
    pub method: &'a str,
    pub path: String,
    pub query: Vec<(&'a str, String)>,
    pub headers: Vec<(&'a str, String)>,
    pub body: &'a [u8],
}

impl Client {
    /// Sends a request without more headers, and waits for the answer.
    pub fn send(&self, method: &str, path: &str, query: &[(&str, &str)], body: &[u8]) -> Answer {
        self.send_with(method, path, query, &[], body)
    }

    /// Sends a request, and waits for the answer.
    pub fn send_with(
        &self,
        method: &str,
        path: &str,
        query: &[(&str, &str)],
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let request = Request {
            method,
            path: encode(path, true),
            query: query
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
            headers: headers
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
            body,
        };
        let head = self.sign(&request, now());
        let mut stream = self.connect();
        stream.write_all(head.as_bytes()).expect("the server reads");
        // Who is refused may find the connection closed.
        let _ = stream.write_all(body);
        receive(&mut stream)
    }

    /// Sends the head of a put and the first half of its body; `between`; and the rest, and waits for the answer.
    pub fn put_slowly(&self, path: &str, body: &[u8], between: impl FnOnce()) -> Answer {
        let request = Request {
            method: "PUT",
            path: encode(path, true),
            query: Vec::new(),
            headers: Vec::new(),
            body,
        };
        let head = self.sign(&request, now());
        let (first, rest) = body.split_at(body.len() / 2);
        let mut stream = self.connect();
        stream.write_all(head.as_bytes()).expect("the server reads");
        stream.write_all(first).expect("the server reads");
        // It looks at what there is before it reads the body.
        std::thread::sleep(Duration::from_millis(300));
        between();
        stream.write_all(rest).expect("the server reads");
        receive(&mut stream)
    }

    /// Sends a request without a body over TLS, to a host of this name that a certificate (PEM) vouches for.
    ///
    /// # Errors
    /// What the handshake fails with.
    pub fn get_over_tls(&self, host: &str, path: &str, pem: &[u8]) -> std::io::Result<Answer> {
        let request = Request {
            method: "GET",
            path: encode(path, true),
            query: Vec::new(),
            headers: vec![("host", format!("{host}:{}", self.address.port()))],
            body: b"",
        };
        self.send_over_tls(host, &self.sign(&request, now()), pem)
    }

    /// Sends the head of a request over TLS.
    ///
    /// # Errors
    /// What the handshake fails with.
    pub fn send_over_tls(&self, host: &str, head: &str, pem: &[u8]) -> std::io::Result<Answer> {
        use rustls::pki_types::pem::PemObject;
        let mut roots = rustls::RootCertStore::empty();
        let own = rustls::pki_types::CertificateDer::from_pem_slice(pem).expect("a certificate");
        roots.add(own).expect("it can be trusted");
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("they are there")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = host.to_owned().try_into().expect("a name");
        let connection = rustls::ClientConnection::new(std::sync::Arc::new(config), name);
        let mut stream =
            rustls::StreamOwned::new(connection.expect("a connection"), self.connect());
        stream.write_all(head.as_bytes())?;
        Ok(receive(&mut stream))
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"")
    }

    pub fn put(&self, path: &str, body: &[u8]) -> Answer {
        self.send("PUT", path, &[], body)
    }

    pub fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], b"")
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the server listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("a socket");
        stream
    }

    /// The head of a request as it goes over the wire, signed for a time.
    pub fn sign(&self, request: &Request<'_>, seconds: u64) -> String {
        self.sign_for("s3", request, seconds)
    }

    /// Calls an action of IAM or STS; with a token for credentials that end.
    pub fn call(&self, service: &str, token: &str, fields: &[(&str, &str)]) -> Answer {
        let form = form(fields);
        let kind = "application/x-www-form-urlencoded".to_owned();
        let mut headers = vec![("content-type", kind)];
        if !token.is_empty() {
            headers.push(("x-amz-security-token", token.to_owned()));
        }
        let request = Request {
            method: "POST",
            path: "/".to_owned(),
            query: Vec::new(),
            headers,
            body: form.as_bytes(),
        };
        let head = self.sign_for(service, &request, now());
        let mut stream = self.connect();
        stream.write_all(head.as_bytes()).expect("the server reads");
        let _ = stream.write_all(request.body);
        receive(&mut stream)
    }

    /// As [`Client::call`], without a signature.
    pub fn call_unsigned(&self, fields: &[(&str, &str)]) -> Answer {
        let kind = "content-type: application/x-www-form-urlencoded\r\n";
        self.follow("POST", "/", kind, form(fields).as_bytes())
    }

    /// As [`Client::sign`], of a request whose date is among its headers.
    pub fn sign_without_amz_date(&self, request: &Request<'_>, seconds: u64) -> String {
        let head = self.sign_with("s3", request, seconds, false);
        assert!(!head.contains("x-amz-date"), "{head}");
        head
    }

    fn sign_for(&self, service: &str, request: &Request<'_>, seconds: u64) -> String {
        self.sign_with(service, request, seconds, true)
    }

    fn sign_with(&self, service: &str, request: &Request<'_>, seconds: u64, dated: bool) -> String {
        let date = amz_date(seconds);
        let digest = request
            .headers
            .iter()
            .find(|(name, _)| *name == "x-amz-content-sha256")
            .map_or_else(|| sha256(request.body), |(_, value)| value.clone());
        let mut headers = request.headers.clone();
        headers.retain(|(name, _)| *name != "x-amz-content-sha256");
        if !headers.iter().any(|(name, _)| *name == "host") {
            headers.push(("host", self.address.to_string()));
        }
        headers.push(("x-amz-content-sha256", digest.clone()));
        if dated {
            headers.push(("x-amz-date", date.clone()));
        }
        headers.sort();
        let mut query: Vec<_> = request
            .query
            .iter()
            .map(|(name, value)| format!("{}={}", encode(name, false), encode(value, false)))
            .collect();
        query.sort();
        let query = query.join("&");
        let names: Vec<_> = headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let lines: String = headers
            .iter()
            .map(|(name, value)| format!("{name}:{}\n", value.trim()))
            .collect();
        let canonical = format!(
            "{}\n{}\n{query}\n{lines}\n{names}\n{digest}",
            request.method, request.path
        );
        let scope = format!("{}/us-east-1/{service}/aws4_request", &date[..8]);
        let signature = self.signature(&date, &scope, &canonical);
        let mut head = format!("{} {}", request.method, request.path);
        if !query.is_empty() {
            write!(head, "?{query}").expect("a string takes any text");
        }
        head.push_str(" HTTP/1.1\r\n");
        for (name, value) in &headers {
            write!(head, "{name}: {value}\r\n").expect("a string takes any text");
        }
        write!(
            head,
            "authorization: AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={names},Signature={signature}\r\n",
            self.access_key_id
        )
        .expect("a string takes any text");
        if !names.contains("content-length") {
            write!(head, "content-length: {}\r\n", request.body.len())
                .expect("a string takes any text");
        }
        head.push_str("connection: close\r\n\r\n");
        head
    }

    fn signature(&self, date: &str, scope: &str, canonical: &str) -> String {
        let text = format!(
            "AWS4-HMAC-SHA256\n{date}\n{scope}\n{}",
            sha256(canonical.as_bytes())
        );
        let secret = format!("AWS4{}", self.secret_access_key);
        let mut key = secret.into_bytes();
        for part in scope.split('/') {
            key = hmac(&key, part);
        }
        hex(&hmac(&key, &text))
    }

    /// The path and query of a link that may be followed without a key.
    pub fn presign(&self, method: &str, path: &str, seconds: u64) -> String {
        self.presign_with(method, path, &[], seconds)
    }

    /// The same with more parameters, which come after `X-Amz-` in their order.
    pub fn presign_with(
        &self,
        method: &str,
        path: &str,
        parameters: &[(&str, &str)],
        seconds: u64,
    ) -> String {
        let date = amz_date(now());
        let scope = format!("{}/us-east-1/s3/aws4_request", &date[..8]);
        let credential = format!("{}/{scope}", self.access_key_id);
        let mut query = format!(
            "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={}&X-Amz-Date={date}&X-Amz-Expires={seconds}&X-Amz-SignedHeaders=host",
            encode(&credential, false)
        );
        for (name, value) in parameters {
            write!(query, "&{}={}", encode(name, false), encode(value, false))
                .expect("a string takes any text");
        }
        let path = encode(path, true);
        let canonical = format!(
            "{method}\n{path}\n{query}\nhost:{}\n\nhost\nUNSIGNED-PAYLOAD",
            self.address
        );
        let signature = self.signature(&date, &scope, &canonical);
        format!("{path}?{query}&X-Amz-Signature={signature}")
    }

    /// Sends a request without a signature.
    pub fn send_unsigned(&self, method: &str, target: &str, body: &[u8]) -> Answer {
        self.follow(method, target, "", body)
    }

    /// Sends a request without a signature, or with that of a link, and with more lines in its head.
    pub fn follow(&self, method: &str, target: &str, lines: &str, body: &[u8]) -> Answer {
        let mut stream = self.connect();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n{lines}connection: close\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("the server reads");
        let _ = stream.write_all(body);
        receive(&mut stream)
    }
}

/// Reads an answer to the end of the connection.
pub fn receive(stream: &mut impl Read) -> Answer {
    let mut bytes = Vec::new();
    // A connection that is reset after the answer has still brought it.
    let _ = stream.read_to_end(&mut bytes);
    let end = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(&bytes)));
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut body = bytes[end + 4..].to_vec();
    let mut lines = head.lines();
    let status = lines.next().expect("a status line");
    let status = status
        .split(' ')
        .nth(1)
        .expect("a status")
        .parse()
        .expect("a number");
    if status == 100 {
        unreachable!("nobody asked to be told to continue");
    }
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let is_chunked = headers
        .iter()
        .any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    if is_chunked {
        body = unchunk(&body);
    }
    Answer {
        status,
        headers,
        body,
    }
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = String::from_utf8_lossy(&rest[..end]);
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk's size");
        if size == 0 {
            break;
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 4 + size..];
    }
    body
}
