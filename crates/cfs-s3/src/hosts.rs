//! Addresses with the bucket in the host's name: `BUCKET.DOMAIN`.
//!
//! Every other host is one of ours too, with the bucket in the path: a server is reached by names that it does not know.

use http::HeaderMap;
use s3s::S3Result;
use s3s::host::{S3Host, VirtualHost};

/// The domain below which every machine may look for names of its own (RFC 6761).
const LOCAL: &str = "localhost";

/// Domains with buckets below them.
#[derive(Clone, Debug)]
pub(crate) struct Hosts(Vec<String>);

impl Hosts {
    /// These domains, and `localhost`.
    pub(crate) fn new(domains: &[String]) -> Self {
        let given = domains.iter().map(|domain| domain.to_ascii_lowercase());
        let mut domains: Vec<_> = given.chain([LOCAL.to_owned()]).collect();
        // Of two of which one is below the other, the longer says more.
        domains.sort_by_key(|domain| std::cmp::Reverse(domain.len()));
        Self(domains)
    }

    /// The bucket that a host, with or without a port, stands for.
    pub(crate) fn bucket(&self, host: &str) -> Option<String> {
        let name = without_port(host).to_ascii_lowercase();
        for domain in &self.0 {
            if name == *domain {
                return None;
            }
            let below = name.strip_suffix(domain.as_str());
            if let Some(bucket) = below.and_then(|rest| rest.strip_suffix('.')) {
                return (!bucket.is_empty()).then(|| bucket.to_owned());
            }
        }
        None
    }

    /// Whether a request says that it is for this machine: for its loopback, or a domain that is ours. Of what a page makes
    /// a browser ask for, this cannot be said where its name was given our address only after it was loaded.
    pub(crate) fn are_asked_for(&self, headers: &HeaderMap) -> bool {
        let host = headers.get(http::header::HOST);
        let Some(host) = host.and_then(|host| host.to_str().ok()) else {
            return false;
        };
        let name = without_port(host).to_ascii_lowercase();
        let bare = name
            .strip_prefix('[')
            .and_then(|bare| bare.strip_suffix(']'));
        let address = bare.unwrap_or(&name).parse::<std::net::IpAddr>();
        address.is_ok_and(|address| address.is_loopback()) || self.0.contains(&name)
    }

    /// The bucket that a request's host stands for.
    pub(crate) fn bucket_of(&self, headers: &HeaderMap) -> Option<String> {
        let host = headers.get(http::header::HOST)?.to_str().ok()?;
        self.bucket(host)
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

impl S3Host for Hosts {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        let found = VirtualHost::new(host);
        Ok(match self.bucket(host) {
            Some(bucket) => found.with_bucket(bucket),
            None => found,
        })
    }
}

/// Whether a text can be a domain: labels of letters, digits and hyphens (RFC 1123).
#[must_use]
pub fn is_domain(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    text.len() <= 253 && text.split('.').all(is_label) && text.parse::<std::net::IpAddr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_what_stands_before_a_domain() {
        let hosts = Hosts::new(&["s3.example.com".to_owned(), "Example.com".to_owned()]);
        let check = |host: &str, bucket: Option<&str>| {
            assert_eq!(hosts.bucket(host).as_deref(), bucket, "{host}");
        };
        check("localhost:9000", None);
        check("photos.localhost:9000", Some("photos"));
        check("a.b.localhost", Some("a.b"));
        check("photos.S3.example.com", Some("photos"));
        check("s3.example.com:443", None);
        check("photos.example.com", Some("photos"));
        check("photosexample.com", None);
        check(".localhost", None);
        check("nas", None);
        check("127.0.0.1:9000", None);
        check("[::1]:9000", None);
        check("", None);
    }

    #[test]
    fn only_names_of_this_machine_are_its_own() {
        let hosts = Hosts::new(&["s3.example.com".to_owned()]);
        let check = |host: &str, wanted: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(http::header::HOST, host.parse().expect("a value"));
            assert_eq!(hosts.are_asked_for(&headers), wanted, "{host}");
        };
        for host in ["localhost", "LOCALHOST:9000", "127.0.0.1:9000", "127.1.2.3"] {
            check(host, true);
        }
        for host in ["[::1]:9000", "[::1]", "S3.example.com:443"] {
            check(host, true);
        }
        for host in [
            "",
            "evil.com",
            "evil.com:9000",
            "x.s3.example.com",
            "10.0.0.1",
            "127.0.0.1.evil.com",
        ] {
            check(host, false);
        }
        assert!(!hosts.are_asked_for(&HeaderMap::new()));
    }

    #[test]
    fn domains_are_names_and_no_addresses() {
        for text in ["localhost", "s3.example.com", "a-b.c"] {
            assert!(is_domain(text), "{text}");
        }
        for text in ["", ".", "a..b", "-a", "a_b", "a:80", "127.0.0.1", "ä"] {
            assert!(!is_domain(text), "{text}");
        }
    }
}
