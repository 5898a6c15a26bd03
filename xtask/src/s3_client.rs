//! A small S3 client for loads: HTTP/1.1 over a socket that stays open, signatures of version 4 without the body.
//!
//! Bodies are made while they are sent and dropped or compared while they come, so that their size costs no memory.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

/// Bytes of a body that are made or taken at a time.
pub(crate) const PIECE_BYTES: usize = 1 << 20;
/// A server that says nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where a server is, and as whom to speak to it.
#[derive(Clone)]
pub(crate) struct Account {
    pub address: SocketAddr,
    pub access_key_id: String,
    pub secret_access_key: String,
}

/// What is sent.
pub(crate) struct Sent<'a> {
    pub bytes: u64,
    /// Fills the piece that begins at an offset.
    pub fill: &'a mut dyn FnMut(u64, &mut [u8]),
}

/// An answer, without its body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// The body, if it is no content that was asked for.
    pub text: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(other, _)| other == name);
        found.map_or("", |(_, value)| value)
    }

    /// What stands between the first pair of these tags.
    pub fn tag(&self, name: &str) -> Option<&str> {
        let rest = self.text.split_once(&format!("<{name}>"))?.1;
        Some(rest.split_once(&format!("</{name}>"))?.0)
    }

    /// Insists on success.
    pub fn ok(self) -> anyhow::Result<Self> {
        ensure!(
            (200..300).contains(&self.status),
            "the answer was {}: {}",
            self.status,
            self.text
        );
        Ok(self)
    }
}

/// A connection to a server, opened when it is needed.
pub(crate) struct Connection {
    account: Account,
    stream: Option<BufReader<TcpStream>>,
    piece: Vec<u8>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes any text");
        text
    })
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length will do");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// `YYYYMMDDTHHMMSSZ` (Howard Hinnant's civil_from_days).
fn amz_date() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since.expect("after 1970").as_secs();
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
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

impl Account {
    /// The head of a request. `path` and `query` need no encoding; the latter is sorted.
    pub fn head(&self, method: &str, path: &str, query: &str, bytes: u64) -> String {
        const NAMES: &str = "host;x-amz-content-sha256;x-amz-date";
        let date = amz_date();
        let canonical_query: Vec<_> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| match pair.contains('=') {
                true => pair.to_owned(),
                false => format!("{pair}="),
            })
            .collect();
        let lines = format!(
            "host:{}\nx-amz-content-sha256:UNSIGNED-PAYLOAD\nx-amz-date:{date}\n",
            self.address
        );
        let canonical = format!(
            "{method}\n{path}\n{}\n{lines}\n{NAMES}\nUNSIGNED-PAYLOAD",
            canonical_query.join("&")
        );
        let scope = format!("{}/us-east-1/s3/aws4_request", &date[..8]);
        let digest = hex(&Sha256::digest(canonical.as_bytes()));
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{digest}");
        let mut key = format!("AWS4{}", self.secret_access_key).into_bytes();
        for part in scope.split('/') {
            key = hmac(&key, part);
        }
        let signature = hex(&hmac(&key, &text));
        let mark = if query.is_empty() { "" } else { "?" };
        format!(
            "{method} {path}{mark}{query} HTTP/1.1\r\nhost: {}\r\nx-amz-content-sha256: UNSIGNED-PAYLOAD\r\n\
             x-amz-date: {date}\r\nauthorization: AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={NAMES},\
             Signature={signature}\r\ncontent-length: {bytes}\r\n\r\n",
            self.address, self.access_key_id
        )
    }

    pub fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
}

impl Connection {
    pub fn new(account: &Account) -> Self {
        Self {
            account: account.clone(),
            stream: None,
            piece: Vec::new(),
        }
    }

    /// The next request goes over a new connection.
    pub fn hang_up(&mut self) {
        self.stream = None;
    }

    /// Sends a request without a body, and takes the answer as text.
    pub fn ask(&mut self, method: &str, path: &str, query: &str) -> anyhow::Result<Answer> {
        self.send_text(method, path, query, "")
    }

    /// Sends a request with a text.
    pub fn send_text(
        &mut self,
        method: &str,
        path: &str,
        query: &str,
        text: &str,
    ) -> anyhow::Result<Answer> {
        let mut sent = Sent {
            bytes: text.len() as u64,
            fill: &mut |at, piece| {
                let at = at as usize;
                piece.copy_from_slice(&text.as_bytes()[at..at + piece.len()]);
            },
        };
        self.request(method, path, query, &mut sent, None)
    }

    /// Sends content.
    pub fn put(&mut self, path: &str, query: &str, sent: &mut Sent<'_>) -> anyhow::Result<Answer> {
        self.request("PUT", path, query, sent, None)
    }

    /// Takes content; each piece is shown as it comes, with its offset.
    pub fn get(
        &mut self,
        path: &str,
        query: &str,
        show: &mut dyn FnMut(u64, &[u8]),
    ) -> anyhow::Result<Answer> {
        let mut nothing = Sent {
            bytes: 0,
            fill: &mut |_, _| {},
        };
        self.request("GET", path, query, &mut nothing, Some(show))
    }

    fn request(
        &mut self,
        method: &str,
        path: &str,
        query: &str,
        sent: &mut Sent<'_>,
        show: Option<&mut dyn FnMut(u64, &[u8])>,
    ) -> anyhow::Result<Answer> {
        let result = self.exchange(method, path, query, sent, show);
        if result.is_err() {
            self.stream = None;
        }
        result.with_context(|| format!("{method} {path}?{query}"))
    }

    fn exchange(
        &mut self,
        method: &str,
        path: &str,
        query: &str,
        sent: &mut Sent<'_>,
        show: Option<&mut dyn FnMut(u64, &[u8])>,
    ) -> anyhow::Result<Answer> {
        let head = self.account.head(method, path, query, sent.bytes);
        let stream = match self.stream.take() {
            Some(stream) => stream,
            None => BufReader::with_capacity(64 << 10, self.account.connect()?),
        };
        let stream = self.stream.insert(stream);
        self.piece.resize(PIECE_BYTES, 0);
        // One write for what fits into one.
        let first = sent.bytes.min((PIECE_BYTES - head.len()) as u64) as usize;
        self.piece[..head.len()].copy_from_slice(head.as_bytes());
        (sent.fill)(0, &mut self.piece[head.len()..head.len() + first]);
        stream
            .get_mut()
            .write_all(&self.piece[..head.len() + first])?;
        let mut at = first as u64;
        while at < sent.bytes {
            let piece = &mut self.piece[..(sent.bytes - at).min(PIECE_BYTES as u64) as usize];
            (sent.fill)(at, piece);
            stream.get_mut().write_all(piece)?;
            at += piece.len() as u64;
        }
        let (mut answer, length) = receive_head(stream)?;
        if method == "HEAD" {
            return Ok(answer);
        }
        let is_content = show.is_some() && answer.status < 300;
        let mut text = Vec::new();
        let mut keep = |_: u64, bytes: &[u8]| text.extend_from_slice(bytes);
        let show: &mut dyn FnMut(u64, &[u8]) = match show {
            Some(show) if is_content => show,
            _ => &mut keep,
        };
        match length {
            Some(bytes) => {
                receive_body(stream, bytes, 0, &mut self.piece, show)?;
            }
            None => {
                let mut at = 0;
                loop {
                    let mut line = String::new();
                    stream.read_line(&mut line)?;
                    let bytes = u64::from_str_radix(line.trim(), 16).context("a chunk's length")?;
                    receive_body(stream, bytes, at, &mut self.piece, show)?;
                    stream.read_line(&mut line)?;
                    at += bytes;
                    if bytes == 0 {
                        break;
                    }
                }
            }
        }
        answer.text = String::from_utf8_lossy(&text).into_owned();
        if answer.header("connection") == "close" {
            self.stream = None;
        }
        Ok(answer)
    }
}

/// The head of an answer, and the length of its body unless it comes in chunks.
fn receive_head(stream: &mut BufReader<TcpStream>) -> anyhow::Result<(Answer, Option<u64>)> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|text| text.parse().ok());
    let Some(status) = status else {
        bail!("no answer: {line:?}");
    };
    let mut headers = Vec::new();
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => {
                headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
            None if line.trim_end().is_empty() && !line.is_empty() => break,
            None => bail!("a header of the answer is none: {line:?}"),
        }
    }
    let answer = Answer {
        status,
        headers,
        text: String::new(),
    };
    let length = match answer.header("transfer-encoding") {
        "chunked" => None,
        _ => Some(answer.header("content-length").parse().unwrap_or(0)),
    };
    Ok((answer, length))
}

fn receive_body(
    stream: &mut BufReader<TcpStream>,
    bytes: u64,
    start: u64,
    piece: &mut [u8],
    show: &mut dyn FnMut(u64, &[u8]),
) -> anyhow::Result<()> {
    let mut at = 0;
    while at < bytes {
        let most = (bytes - at).min(piece.len() as u64) as usize;
        let read = stream.read(&mut piece[..most])?;
        ensure!(read > 0, "the answer ends after {at} of {bytes} bytes");
        show(start + at, &piece[..read]);
        at += read as u64;
    }
    Ok(())
}
