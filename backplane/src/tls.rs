//! Encryption of the connections to servers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::BackplaneError;

/// How connections are encrypted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TlsFiles {
    /// PEM file of the certificate authorities to trust; `None` trusts those of the operating system.
    pub ca_file: Option<PathBuf>,
    /// PEM files of this node's certificate chain and key, where the server asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// What a client library needs; the files are read now, so that mistakes show at the start.
pub(crate) fn client_config(tls: &TlsFiles) -> Result<ClientConfig, BackplaneError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| BackplaneError::Protocol(format!("TLS: {error}")))?
        .with_root_certificates(match &tls.ca_file {
            Some(file) => authorities(file)?,
            None => system_authorities()?,
        });
    match &tls.identity {
        None => Ok(builder.with_no_client_auth()),
        Some((chain_file, key_file)) => {
            let chain = certificates(chain_file)?;
            let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| refuse("key", key_file, error))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| refuse("certificate", chain_file, error))
        }
    }
}

fn authorities(file: &Path) -> Result<RootCertStore, BackplaneError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| refuse("certificate authority", file, error))?;
    }
    Ok(roots)
}

fn system_authorities() -> Result<RootCertStore, BackplaneError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // A store of some hundred certificates may hold one that nobody can read.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or_else(String::new, |error| format!(": {error}"));
        return Err(BackplaneError::Protocol(format!(
            "TLS: the operating system has no certificate authorities, so a CA file is needed{why}"
        )));
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, BackplaneError> {
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| refuse("certificate", file, error))?;
    if certificates.is_empty() {
        return Err(refuse("certificate", file, "it holds none"));
    }
    Ok(certificates)
}

fn refuse(what: &str, file: &Path, why: impl std::fmt::Display) -> BackplaneError {
    BackplaneError::Protocol(format!("TLS: {what} file {}: {why}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_files_are_named() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str, content: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, content).expect("the directory is writable");
            path
        };
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let absent = directory.path().join("absent.pem");
        for path in [absent.clone(), file("empty.pem", ""), file("broken.pem", broken)] {
            let tls = TlsFiles { ca_file: Some(path.clone()), identity: None };
            let why = client_config(&tls).expect_err("no authority is in there").to_string();
            assert!(why.contains(&path.display().to_string()), "{why}");
        }
        let authority = rcgen::generate_simple_self_signed(["server".to_owned()]).expect("a certificate");
        let ca_file = file("ca.pem", &authority.cert.pem());
        let key = file("key.pem", &authority.signing_key.serialize_pem());
        let of = |chain: &Path, key: &Path| TlsFiles {
            ca_file: Some(ca_file.clone()),
            identity: Some((chain.to_owned(), key.to_owned())),
        };
        client_config(&of(&ca_file, &key)).expect("all files are there");
        for (chain, key, named) in
            [(&ca_file, &absent, &absent), (&absent, &key, &absent), (&ca_file, &ca_file, &ca_file)]
        {
            let why = client_config(&of(chain, key)).expect_err("the identity is incomplete").to_string();
            assert!(why.contains(&named.display().to_string()), "{why}");
        }
        let another = rcgen::generate_simple_self_signed(["server".to_owned()]).expect("a certificate");
        let foreign = file("foreign.pem", &another.signing_key.serialize_pem());
        client_config(&of(&ca_file, &foreign)).expect_err("the key is of another certificate");
    }
}
