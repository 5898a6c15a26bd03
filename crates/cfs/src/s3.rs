//! The S3 face of the pool that this process serves.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use cfs_format::Ino;
use cfs_s3::{S3Server, StartError, Watcher};
use cfs_store::Host;

use crate::admin::service::Service;
use crate::failure::{Code, Failure, Result};
use crate::host::System;

/// Where `cfs server` speaks S3 if nothing else is said.
const DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9000);

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

/// How long lifecycle rules take a day to be: shorter only to try rules out, by a variable of the environment.
fn lifecycle_day() -> Result<Duration> {
    let Ok(text) = std::env::var(LIFECYCLE_DAY) else {
        return Ok(Duration::from_secs(86_400));
    };
    match text.parse() {
        Ok(seconds) if seconds > 0 => {
            tracing::warn!("a day of lifecycle rules has {seconds} seconds");
            Ok(Duration::from_secs(seconds))
        }
        _ => Err(Failure::new(
            Code::Usage,
            format!("{LIFECYCLE_DAY} is a number of seconds, not {text:?}"),
        )),
    }
}

/// Starts to speak S3. The key of the user root is made on the first start, and said once.
///
/// # Errors
/// When an address that was asked for cannot be listened at; users cannot be read or written. That the default
/// address is taken, as by another server on this machine, is said and is no error.
pub fn start(service: &Arc<Service>, at: S3At) -> Result<Option<S3Server>> {
    let address = match at {
        S3At::Off => return Ok(None),
        S3At::Default => DEFAULT,
        S3At::Address(address) => address,
    };
    let users = service.users()?;
    let watcher = Arc::new(Kernel(Arc::clone(service)));
    let fs = Arc::clone(&service.pool().fs);
    let server = match S3Server::start(fs, Arc::clone(&users), watcher, address) {
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
    server.run_lifecycle(lifecycle_day()?);
    let made = users
        .ensure_root(&mut |bytes| System.fill_random(bytes))
        .map_err(|error| Failure::new(Code::Failed, format!("the S3 root key: {error}")))?;
    if let Some(key) = made {
        crate::tell!(
            "S3 root key, shown this once:\n  access_key_id     {}\n  secret_access_key {}",
            key.access_key_id,
            key.secret_access_key
        );
    }
    if !server.address().ip().is_loopback() {
        tracing::warn!("S3 at {} is not encrypted on the network", server.address());
    }
    tracing::info!("S3 at http://{}", server.address());
    Ok(Some(server))
}
