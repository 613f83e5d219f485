//! QUIC's cryptography: TLS 1.3 with raw Ed25519 public keys (RFC 7250) in both directions.
//!
//! No certificates, no names, no wall clock: a peer *is* its key. The verifier checks the peer's
//! signature and that its node id is among those allowed.

use std::fmt;
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs as provider};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use crate::identity::{Identity, NodeId};

/// The protocol both ends must speak.
pub const ALPN: &[u8] = b"mwb/1";
/// The server name that QUIC wants; it means nothing here and is sent by every node alike.
pub const SERVER_NAME: &str = "mwb.invalid";

/// Whose key is accepted in a handshake.
#[derive(Clone)]
pub enum Allowed {
    /// Any node that proves to own its key. The caller decides after the handshake, so that it can
    /// tell a stranger why it is refused.
    AnyNode,
    /// Exactly this node.
    Only(NodeId),
}

/// Why the cryptography could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// rustls refused the key or a parameter.
    #[error("TLS: {0}")]
    Tls(#[from] Error),
    /// The provider lacks the cipher of QUIC's first packets.
    #[error("TLS: no cipher suite for QUIC's initial packets")]
    InitialSuite,
}

/// The settings of a node that accepts connections.
///
/// # Errors
/// When the identity cannot sign.
pub fn server_config(identity: &Identity, allowed: Allowed) -> Result<QuicServerConfig, TlsError> {
    let key = certified_key(identity)?;
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Verifier::new(allowed)))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Every path makes its own full handshake: no resumption, no early data, fresh exporter.
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    QuicServerConfig::try_from(config).map_err(|_no_suite| TlsError::InitialSuite)
}

/// The settings for dialling `peer`.
///
/// # Errors
/// When the identity cannot sign.
pub fn client_config(identity: &Identity, peer: NodeId) -> Result<QuicClientConfig, TlsError> {
    client_config_for(identity, Allowed::Only(peer))
}

/// The settings for dialling an address of which it is not known, or not for certain, who is there.
///
/// # Errors
/// When the identity cannot sign.
pub fn client_config_for(identity: &Identity, allowed: Allowed) -> Result<QuicClientConfig, TlsError> {
    let key = certified_key(identity)?;
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(allowed)))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    QuicClientConfig::try_from(config).map_err(|_no_suite| TlsError::InitialSuite)
}

/// The node at the other end of an established connection.
pub fn peer_of(connection: &quinn::Connection) -> Option<NodeId> {
    public_key_of(connection).map(|key| NodeId::of_public_key(&key))
}

/// The Ed25519 public key of the node at the other end of an established connection.
pub fn public_key_of(connection: &quinn::Connection) -> Option<[u8; 32]> {
    let keys = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let spki = keys.first()?;
    NodeId::of_spki(spki)?;
    spki.last_chunk().copied()
}

fn certified_key(identity: &Identity) -> Result<Arc<CertifiedKey>, TlsError> {
    let key = provider::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(identity.pkcs8()))?;
    let spki = key.public_key().ok_or(Error::General("the key has no public half".to_owned()))?;
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki.to_vec())], key)))
}

struct Verifier {
    allowed: Allowed,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(allowed: Allowed) -> Self {
        let provider: CryptoProvider = provider::default_provider();
        Self { allowed, algorithms: provider.signature_verification_algorithms }
    }

    fn check(&self, key: &CertificateDer<'_>, more: &[CertificateDer<'_>]) -> Result<(), Error> {
        let bad = |error| Err(Error::InvalidCertificate(error));
        let Some(node) = NodeId::of_spki(key) else { return bad(CertificateError::BadEncoding) };
        if !more.is_empty() {
            return bad(CertificateError::BadEncoding);
        }
        match self.allowed {
            Allowed::Only(wanted) if node != wanted => bad(CertificateError::ApplicationVerificationFailure),
            Allowed::Only(_) | Allowed::AnyNode => Ok(()),
        }
    }

    fn signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if signed.scheme != SignatureScheme::ED25519 {
            return Err(Error::InvalidCertificate(CertificateError::BadSignature));
        }
        let spki = SubjectPublicKeyInfoDer::from(key.as_ref());
        rustls::crypto::verify_tls13_signature_with_raw_key(message, &spki, signed, &self.algorithms)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

const NO_TLS12: &str = "TLS 1.2 is not spoken";

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General(NO_TLS12.to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General(NO_TLS12.to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
