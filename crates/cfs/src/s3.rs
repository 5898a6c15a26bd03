//! The S3 face of the pool that this process serves.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use cfs_format::Ino;
use cfs_fs::FsError;
use cfs_s3::{
    Certificate, CertificateError, Etags, LOG_PATIENCE, Listening, S3Server, StartError, UserError,
    Watcher,
};
use cfs_store::Host;

use crate::admin::service::Service;
use crate::cli::{EtagKind, S3Args};
use crate::datadir::DataDir;
use crate::failure::{Code, Failure, Result};
use crate::host::System;

/// Where `cfs server` speaks S3 if nothing else is said.
const DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9000);
/// Longest file with certificates or a key, bytes.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// Seconds that lines of access logs are gathered.
const LOGGING_SECONDS: &str = "CFS_LOGGING_SECONDS";
/// Seconds of a day for lifecycle rules.
const LIFECYCLE_DAY: &str = "CFS_LIFECYCLE_DAY";

/// Where to speak S3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum S3At {
    /// At the default address, if that is free.
    Default,
    /// At this address.
    Address(SocketAddr),
    /// Nowhere.
    Off,
}

impl FromStr for S3At {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            _ => text.parse().map(Self::Address).map_err(|_| {
                "give an address and a port, as in 127.0.0.1:9000, or `off`".to_owned()
            }),
        }
    }
}

/// Tells the kernel of a mount, if there is one.
struct Kernel(Arc<Service>);

impl Watcher for Kernel {
    fn name_changed(&self, parent: Ino, name: &[u8]) {
        if let Some(caches) = self.0.kernel_caches() {
            caches.entry_changed(parent, name);
        }
    }

    fn inode_changed(&self, ino: Ino) {
        if let Some(caches) = self.0.kernel_caches() {
            caches.inode_changed(ino);
        }
    }
}

/// Seconds that a variable of the environment says something takes, to try it out.
fn seconds(variable: &str, what: &str) -> Result<Option<Duration>> {
    let Ok(text) = std::env::var(variable) else {
        return Ok(None);
    };
    match text.parse() {
        Ok(seconds) if seconds > 0 => {
            tracing::warn!("{what}: {seconds} seconds");
            Ok(Some(Duration::from_secs(seconds)))
        }
        _ => Err(Failure::new(
            Code::Usage,
            format!("{variable} is a number of seconds, not {text:?}"),
        )),
    }
}

fn read_pem(path: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(PEM_BYTES_MAX).read_to_end(&mut text))
        .map_err(|e| Failure::host("read", path, &e))?;
    Ok(text)
}

fn unfit(path: &Path, error: &CertificateError) -> Failure {
    Failure::new(Code::Usage, format!("{}: {error}", path.display()))
}

/// The certificate to speak HTTPS with; none for HTTP.
fn certificate(dir: &DataDir, address: SocketAddr, args: &S3Args) -> Result<Option<Certificate>> {
    if let (Some(chain), Some(key)) = (&args.tls_cert, &args.tls_key) {
        let read = Certificate::from_pem(&read_pem(chain)?, &read_pem(key)?);
        return read.map(Some).map_err(|error| {
            let path = match error {
                CertificateError::Key(_) => key,
                _ => chain,
            };
            unfit(path, &error)
        });
    }
    match args.tls_self_made {
        true => self_made(dir, address, args).map(Some),
        false => Ok(None),
    }
}

/// The certificate that is kept, or a new one if that is none for this address and these domains.
fn self_made(dir: &DataDir, address: SocketAddr, args: &S3Args) -> Result<Certificate> {
    let mut names = vec!["localhost".to_owned()];
    if address.ip().is_unspecified() {
        names.extend(["127.0.0.1".to_owned(), "::1".to_owned()]);
    } else {
        names.push(address.ip().to_string());
    }
    names.extend(args.s3_domain.iter().cloned());
    let (path, key_path) = (dir.certificate(), dir.certificate_key());
    if path.exists() && key_path.exists() {
        match Certificate::from_pem(&read_pem(&path)?, &read_pem(&key_path)?) {
            Ok(kept) if names.iter().all(|name| kept.is_for(name)) => return Ok(kept),
            Ok(_) => tracing::warn!("{} is for other names; it is made anew", path.display()),
            Err(error) => tracing::warn!("{}: {error}; it is made anew", path.display()),
        }
    }
    // Buckets are below these.
    let below: Vec<_> = ["localhost"]
        .into_iter()
        .chain(args.s3_domain.iter().map(String::as_str))
        .map(|domain| format!("*.{domain}"))
        .collect();
    names.extend(below);
    // The host's name may change without a certificate being worse for it.
    let host = rustix::system::uname();
    if let Ok(host) = host.nodename().to_str()
        && cfs_s3::is_domain(host)
        && !names.iter().any(|name| name == host)
    {
        names.push(host.to_owned());
    }
    let pem = Certificate::make(&names).map_err(|error| unfit(&path, &error))?;
    dir.keep_certificate(&pem.chain, &pem.key)?;
    Certificate::from_pem(pem.chain.as_bytes(), pem.key.as_bytes())
        .map_err(|error| unfit(&path, &error))
}

/// Whether options say how S3 is to be reached.
fn has_options(args: &S3Args) -> bool {
    args.tls_self_made || args.tls_cert.is_some() || args.s3_plain || !args.s3_domain.is_empty()
}

/// Starts to speak S3. The key of the user root is made on the first start, and said once.
///
/// # Errors
/// When options are for an S3 that is off; an address that was asked for cannot be listened at; users cannot be read or written; a certificate cannot be used; or
/// an address beyond this machine is to be served without encryption, and nobody has said so. That the default
/// address is taken, as by another server on this machine, is said and is no error.
pub fn start(
    service: &Arc<Service>,
    dir: &DataDir,
    at: S3At,
    args: &S3Args,
) -> Result<Option<S3Server>> {
    let address = match at {
        S3At::Off if has_options(args) => {
            return Err(Failure::new(
                Code::Usage,
                "there is no S3 that these options could be for",
            )
            .hint("leave --s3 off, or --tls-..., --s3-plain and --s3-domain, out"));
        }
        S3At::Off => return Ok(None),
        S3At::Default => DEFAULT,
        S3At::Address(address) => address,
    };
    let certificate = certificate(dir, address, args)?;
    let fingerprint = certificate.as_ref().map(Certificate::fingerprint);
    if certificate.is_none() && !address.ip().is_loopback() && !args.s3_plain {
        return Err(Failure::new(
            Code::Usage,
            format!("S3 at {address} would not be encrypted, and others on the network could read it"),
        )
        .hint(
            "give --tls-cert and --tls-key, or --tls-self-made; behind a proxy that encrypts and sets X-Forwarded-For, \
             or on a network of your own, --s3-plain",
        ));
    }
    let listening = Listening {
        address,
        certificate,
        domains: args.s3_domain.clone(),
        etags: match args.s3_etag {
            EtagKind::Md5 => Etags::Md5,
            EtagKind::Sha256 => Etags::Sha256,
        },
        upload_patience: match args.s3_upload_days {
            0 => None,
            days => Some(Duration::from_secs(u64::from(days) * 86_400)),
        },
        log_patience: seconds(LOGGING_SECONDS, "access logs are delivered after")?
            .unwrap_or(LOG_PATIENCE),
    };
    let users = service.users()?;
    let watcher = Arc::new(Kernel(Arc::clone(service)));
    let fs = Arc::clone(&service.pool().fs);
    let server = match S3Server::start(fs, Arc::clone(&users), watcher, listening) {
        Ok(server) => server,
        Err(StartError::Listen { source, .. })
            if at == S3At::Default && source.kind() == ErrorKind::AddrInUse =>
        {
            tracing::warn!(
                "no S3: {address} is taken, as by another server; --s3 ADDR chooses another"
            );
            return Ok(None);
        }
        Err(error) => {
            let code = match error {
                StartError::Listen { .. } => Code::Usage,
                StartError::Threads(_) => Code::Host,
            };
            return Err(Failure::new(code, error.to_string())
                .hint("choose another address with --s3 ADDR, or --s3 off"));
        }
    };
    service.set_lifecycle(server.lifecycle().downgrade());
    let day = seconds(LIFECYCLE_DAY, "a day of lifecycle rules")?;
    server.run_lifecycle(day.unwrap_or(Duration::from_secs(86_400)));
    let made = match users.ensure_root(&mut |bytes| System.fill_random(bytes)) {
        Ok(made) => made,
        // What is needed to make room must not wait for it.
        Err(UserError::Fs(FsError::NoSpace)) => {
            tracing::warn!("no room for the S3 root key: S3 has none before the next start");
            None
        }
        Err(UserError::Fs(FsError::ReadOnly(_))) => {
            tracing::warn!("the pool is only read, and has no S3 root key: S3 knows no users");
            None
        }
        Err(error) => {
            let message = format!("the S3 root key: {error}");
            return Err(Failure::new(Code::Failed, message));
        }
    };
    if let Some(key) = made {
        crate::tell!(
            "S3 root key, shown this once:\n  access_key_id     {}\n  secret_access_key {}",
            key.access_key_id,
            key.secret_access_key
        );
    }
    match fingerprint {
        Some(fingerprint) => {
            tracing::info!("S3 at https://{}", server.address());
            crate::tell!("S3 certificate, SHA-256 {fingerprint}");
            if args.tls_self_made {
                crate::tell!("  for clients to trust: {}", dir.certificate().display());
            }
        }
        None if server.address().ip().is_loopback() => {
            tracing::info!("S3 at http://{}", server.address());
        }
        None => tracing::warn!("S3 at http://{} is not encrypted", server.address()),
    }
    Ok(Some(server))
}
