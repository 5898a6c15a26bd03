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
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let name = name.to_ascii_lowercase();
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

    /// The bucket that a request's host stands for.
    pub(crate) fn bucket_of(&self, headers: &HeaderMap) -> Option<String> {
        let host = headers.get(http::header::HOST)?.to_str().ok()?;
        self.bucket(host)
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
    fn domains_are_names_and_no_addresses() {
        for text in ["localhost", "s3.example.com", "a-b.c"] {
            assert!(is_domain(text), "{text}");
        }
        for text in ["", ".", "a..b", "-a", "a_b", "a:80", "127.0.0.1", "ä"] {
            assert!(!is_domain(text), "{text}");
        }
    }
}
