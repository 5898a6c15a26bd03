//! Certificates for HTTPS: those that are given, and self-made ones.
//!
//! TLS 1.2 and 1.3 with the cryptography that the pool uses too. Nothing but HTTP/1.1 is negotiated.

use std::net::IpAddr;
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use sha2::{Digest as _, Sha256};

/// What a self-made certificate calls itself.
const COMMON_NAME: &str = "ClaudeFS";

/// Why a certificate cannot be used. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// There is no certificate in the file.
    #[error("there is no certificate in PEM in it: {0}")]
    Chain(String),
    /// There is no key in the file.
    #[error("there is no unencrypted private key in PEM in it: {0}")]
    Key(String),
    /// They do not fit, or are of a kind that is not supported.
    #[error("certificate and key do not go together: {0}")]
    Pair(rustls::Error),
    /// No certificate can be made for such a name.
    #[error("no certificate can be made: {0}")]
    Make(#[from] rcgen::Error),
}

/// A certificate and its key.
#[derive(Clone)]
pub struct Certificate {
    config: Arc<ServerConfig>,
    own: CertificateDer<'static>,
}

/// A certificate and its key as files have them: PEM.
pub struct Pem {
    /// The certificate, and those that vouch for it.
    pub chain: String,
    /// The private key.
    pub key: String,
}

impl Certificate {
    /// The first certificate of a chain, and the key that belongs to it.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|error| CertificateError::Chain(error.to_string()))?;
        let own = chain
            .first()
            .cloned()
            .ok_or_else(|| CertificateError::Chain("it holds none".to_owned()))?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| CertificateError::Key(error.to_string()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(CertificateError::Pair)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(CertificateError::Pair)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            config: Arc::new(config),
            own,
        })
    }

    /// A new key, and a certificate for these names and addresses that nobody else vouches for.
    ///
    /// # Errors
    /// [`CertificateError::Make`] for a name that no certificate can have.
    pub fn make(names: &[String]) -> Result<Pem, CertificateError> {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, COMMON_NAME);
        let key = KeyPair::generate()?;
        let made = params.self_signed(&key)?;
        Ok(Pem {
            chain: made.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Whether a client that asks for this name or address may take the certificate for it.
    #[must_use]
    pub fn is_for(&self, name: &str) -> bool {
        let Ok(parsed) = ParsedCertificate::try_from(&self.own) else {
            return false;
        };
        let name = match name.parse::<IpAddr>() {
            Ok(address) => Ok(ServerName::from(address)),
            Err(_) => ServerName::try_from(name),
        };
        name.is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
    }

    /// SHA-256 of the certificate, as browsers and `openssl x509 -fingerprint -sha256` show it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let digest = Sha256::digest(&self.own);
        let pairs: Vec<String> = digest.iter().map(|byte| format!("{byte:02X}")).collect();
        pairs.join(":")
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }
}
