//! How a node becomes a member: the bearer of a token dials the inviter, both prove that they know the
//! token's secret, and the bearer gets its record and those of the others.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mwb_proto::control::{JoinAccept, JoinRefuse, JoinRefuseReason, JoinRequest, MemberList, Message};
use mwb_proto::mesh::{
    EnrolError, JOIN_EXPORTER_LABEL, JoinProof, MEMBERS_MAX, MemberRecord, Members, NodeId, RecordRefused,
    RedeemError, Roles, SignedRecord, SignedRevocation, Token,
};
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig};
use socket2::SockRef;

use super::Membership;
use super::spread::news;
use super::store::{StoreError, wall_clock};
use crate::control::{CloseCode, ControlStream, JoinError, transport};
use crate::identity::Identity;
use crate::tls::{self, SERVER_NAME, TlsError};

/// How long a dial may take until the handshake is done.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the joiner's thanks may take: it closes the connection when it has everything.
const PARTING: Duration = Duration::from_secs(3);

/// Why a node did not become a member.
#[derive(Debug, thiserror::Error)]
pub enum MeshJoinError {
    /// None of the inviter's addresses answered.
    #[error("the inviter cannot be reached; it must run, with its UDP port open (mwb-node doctor there):\n{}", .0.iter().map(|(a, e)| format!("  {a}: {e}")).collect::<Vec<_>>().join("\n"))]
    Unreachable(Vec<(SocketAddr, String)>),
    /// The inviter belongs to another mesh than the token.
    #[error("the token is for another mesh: the inviter now belongs to a mesh with another root")]
    ForeignMesh,
    /// The invite's time is over.
    #[error("the token has expired; ask for a new one (mwb-node invite)")]
    Expired,
    /// The invite let in as many nodes as it was for.
    #[error("the token is used up; ask for a new one (mwb-node invite)")]
    UsedUp,
    /// The inviter remembers no such invite.
    #[error("the inviter does not know this token; ask for a new one (mwb-node invite)")]
    Unknown,
    /// The inviter said no.
    #[error("the inviter refused: {text}")]
    Refused {
        /// For programs.
        reason: JoinRefuseReason,
        /// For people.
        text: String,
    },
    /// The node at the address does not know the token's secret, or gives records that are none.
    #[error("the answer does not come from who made the token ({0})")]
    Impostor(&'static str),
    /// The connection broke.
    #[error("the connection with the inviter broke: {0}")]
    Broken(#[from] JoinError),
    /// The key cannot be used for TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No socket.
    #[error("no socket for the join: {0}")]
    Socket(#[from] std::io::Error),
}

/// Joins the mesh of `token` as `name`; `addresses` are where this node can be reached, should it
/// become an exit. Gives the members, this node among them.
///
/// Where the rules of a running node would lead the dial into its bond, `fwmark` leads it past them, if this process may set it.
///
/// # Errors
/// Why not. The token may be used again unless the inviter said otherwise.
pub async fn join(
    identity: &Identity,
    token: &Token,
    name: &str,
    addresses: &[SocketAddr],
    fwmark: Option<u32>,
) -> Result<Members, MeshJoinError> {
    let (endpoint, connection) = dial(identity, token, fwmark).await?;
    let result = ask(identity, token, name, addresses, &connection).await;
    CloseCode::Done.close(&connection);
    // The close is sent by the endpoint's own task, which must live until then.
    endpoint.wait_idle().await;
    result
}

async fn dial(
    identity: &Identity,
    token: &Token,
    fwmark: Option<u32>,
) -> Result<(Endpoint, Connection), MeshJoinError> {
    let crypto = tls::client_config(identity, token.inviter)?;
    let mut client = ClientConfig::new(Arc::new(crypto));
    client.transport_config(transport());
    let mut problems = Vec::new();
    for &address in &token.addresses {
        let any = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let attempt = async {
            let mut config = EndpointConfig::default();
            // The inviter's socket tells QUIC from data by the fixed bit.
            config.grease_quic_bit(false);
            let socket = std::net::UdpSocket::bind(SocketAddr::new(any, 0)).map_err(|e| e.to_string())?;
            if let Some(mark) = fwmark {
                // Not for everybody to do: without it the host's rules decide.
                let _ = SockRef::from(&socket).set_mark(mark);
            }
            let endpoint = Endpoint::new(config, None, socket, Arc::new(quinn::TokioRuntime))
                .map_err(|error| error.to_string())?;
            let connecting = endpoint.connect_with(client.clone(), address, SERVER_NAME);
            let connecting = connecting.map_err(|error| error.to_string())?;
            match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
                Ok(Ok(connection)) => Ok((endpoint, connection)),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_elapsed) => Err("no answer".to_owned()),
            }
        };
        match attempt.await {
            Ok(connected) => return Ok(connected),
            Err(problem) => problems.push((address, problem)),
        }
    }
    Err(MeshJoinError::Unreachable(problems))
}

async fn ask(
    identity: &Identity,
    token: &Token,
    name: &str,
    addresses: &[SocketAddr],
    connection: &Connection,
) -> Result<Members, MeshJoinError> {
    let exporter = exporter(connection)?;
    let me = identity.node_id();
    let proof = JoinProof { secret: &token.secret, exporter: &exporter, joiner: me, inviter: token.inviter };
    let mut stream = ControlStream::new(connection.open_bi().await.map_err(JoinError::from)?);
    stream.trust();
    let request = JoinRequest {
        mesh: *token.mesh().as_bytes(),
        invite: token.invite,
        proof: proof.request(),
        name: name.to_owned(),
        addresses: addresses.to_vec(),
    };
    stream.send(&Message::JoinRequest(request)).await?;
    let accept = match stream.next().await {
        Ok(Message::JoinAccept(accept)) => accept,
        Ok(Message::JoinRefuse(refuse)) => return Err(refused(refuse)),
        Ok(other) => return Err(JoinError::Unexpected(other.kind()).into()),
        Err(error) => {
            return Err(connection.close_reason().map_or(error, JoinError::Connection).into());
        }
    };
    if !proof.is_accept(&accept.record, &accept.proof) {
        return Err(MeshJoinError::Impostor("its proof is wrong"));
    }
    let mut members = Members::new(token.root);
    members.admit(me, &accept.record).map_err(|_| MeshJoinError::Impostor("our record is not signed"))?;
    // An empty list is the last; a peer that never ends is not listened to for ever.
    for _ in 0..MEMBERS_MAX {
        match stream.next().await {
            Ok(Message::MemberList(list)) if list == MemberList::default() => break,
            Ok(Message::MemberList(list)) => learn(&mut members, &list),
            Ok(other) => return Err(JoinError::Unexpected(other.kind()).into()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(members)
}

fn learn(members: &mut Members, list: &MemberList) {
    // A list may hold what is not for us to take; what is signed counts.
    for signed in list.revocations.iter().filter_map(|bytes| SignedRevocation::decode(bytes).ok()) {
        let _ = members.handle_revocation(&signed);
    }
    for signed in list.records.iter().filter_map(|bytes| SignedRecord::decode(bytes).ok()) {
        let _ = members.handle_record(&signed);
    }
}

fn refused(refuse: JoinRefuse) -> MeshJoinError {
    match refuse.reason {
        JoinRefuseReason::ForeignMesh => MeshJoinError::ForeignMesh,
        JoinRefuseReason::Expired => MeshJoinError::Expired,
        JoinRefuseReason::UsedUp => MeshJoinError::UsedUp,
        JoinRefuseReason::UnknownInvite => MeshJoinError::Unknown,
        reason => MeshJoinError::Refused { reason, text: refuse.text },
    }
}

fn exporter(connection: &Connection) -> Result<[u8; 32], JoinError> {
    let mut out = [0; 32];
    connection
        .export_keying_material(&mut out, JOIN_EXPORTER_LABEL, &[])
        .map_err(|_error| JoinError::Keys)?;
    Ok(out)
}

/// The inviter's side: answers a request that came as the first message of `connection`, and waits
/// for the joiner to take the answer.
pub(crate) async fn serve(
    membership: Option<&Arc<Membership>>,
    connection: &Connection,
    mut stream: ControlStream,
    request: JoinRequest,
) -> Result<(), JoinError> {
    let answer = match membership {
        Some(membership) => answer(membership, connection, request).await,
        None => Err(refuse(JoinRefuseReason::NotInviter, "this node belongs to no mesh")),
    };
    match answer {
        Ok((accept, members)) => {
            stream.send(&Message::JoinAccept(accept)).await?;
            let nobody = Members::new(*members.root());
            // The empty list says that there is no more.
            for list in news(&nobody, &members).into_iter().chain([MemberList::default()]) {
                stream.send(&Message::MemberList(list)).await?;
            }
        }
        Err(refuse) => {
            tracing::info!(remote = %connection.remote_address(), refuse.text, "a join was refused");
            stream.send(&Message::JoinRefuse(refuse)).await?;
        }
    }
    stream.finish();
    let _ = tokio::time::timeout(PARTING, connection.closed()).await;
    CloseCode::Done.close(connection);
    Ok(())
}

async fn answer(
    membership: &Arc<Membership>,
    connection: &Connection,
    request: JoinRequest,
) -> Result<(JoinAccept, Members), JoinRefuse> {
    if request.mesh != *membership.mesh().as_bytes() {
        return Err(refuse(JoinRefuseReason::ForeignMesh, "the token is for another mesh"));
    }
    let unusable = |text| refuse(JoinRefuseReason::NotInviter, text);
    let exporter = exporter(connection).map_err(|_| unusable("no keying material"))?;
    let key = tls::public_key_of(connection).ok_or_else(|| unusable("no public key"))?;
    let lent = Arc::clone(membership);
    // Files are locked, written and synced.
    let work = tokio::task::spawn_blocking(move || enrol(&lent, &exporter, key, &request));
    work.await.map_err(|_died| unusable("the join died"))?
}

fn enrol(
    membership: &Membership,
    exporter: &[u8; 32],
    public_key: [u8; 32],
    request: &JoinRequest,
) -> Result<(JoinAccept, Members), JoinRefuse> {
    let (joiner, inviter) = (NodeId::of_public_key(&public_key), membership.me);
    let result = membership.store.change(|members, invites, root| {
        let connection = (exporter, joiner, inviter);
        let redeemed = invites.redeem(&request.invite, &request.proof, connection, wall_clock())?;
        let is_exit = redeemed.roles.contains(Roles::EXIT);
        if is_exit && request.addresses.is_empty() {
            return Err(NoEntry::NoAddress);
        }
        let addresses = if is_exit { &request.addresses[..] } else { &[] };
        let signed = members.enrol(root, public_key, (&request.name, redeemed.roles, addresses))?;
        let MemberRecord { name, roles, .. } = signed.record();
        tracing::info!(node = %joiner.short(), name, %roles, "a node has joined the mesh");
        let record = signed.encode();
        let proof = JoinProof { secret: &redeemed.secret, exporter, joiner, inviter }.accept(&record);
        Ok(JoinAccept { proof, record })
    });
    match result {
        Ok((accept, members)) => {
            membership.merge(&members);
            Ok((accept, members))
        }
        Err(error) => Err(error.into()),
    }
}

/// Why the inviter lets nobody in.
#[derive(Debug, thiserror::Error)]
enum NoEntry {
    #[error("an exit needs an address: join with --public ADDRESS:PORT")]
    NoAddress,
    #[error(transparent)]
    Redeem(#[from] RedeemError),
    #[error(transparent)]
    Describe(#[from] EnrolError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<NoEntry> for JoinRefuse {
    fn from(error: NoEntry) -> Self {
        let reason = match &error {
            NoEntry::Redeem(RedeemError::Unknown) => JoinRefuseReason::UnknownInvite,
            NoEntry::Redeem(RedeemError::Proof) => JoinRefuseReason::Proof,
            NoEntry::Redeem(RedeemError::Expired) => JoinRefuseReason::Expired,
            NoEntry::Redeem(RedeemError::UsedUp) => JoinRefuseReason::UsedUp,
            NoEntry::NoAddress | NoEntry::Describe(EnrolError::Field(_)) => JoinRefuseReason::Description,
            NoEntry::Describe(EnrolError::Refused(RecordRefused::Full)) => JoinRefuseReason::Full,
            NoEntry::Describe(EnrolError::Refused(_)) => JoinRefuseReason::NotInviter,
            NoEntry::Store(StoreError::NoRoot) => {
                return refuse(
                    JoinRefuseReason::NotInviter,
                    "this node does not have the mesh's root key, so it cannot let anybody in",
                );
            }
            NoEntry::Store(error) => {
                // Paths of this node are none of the joiner's business.
                tracing::error!(%error, "no node can be let in");
                return refuse(JoinRefuseReason::NotInviter, "this node cannot let anybody in now");
            }
        };
        refuse(reason, &error.to_string())
    }
}

fn refuse(reason: JoinRefuseReason, text: &str) -> JoinRefuse {
    JoinRefuse { reason, text: text.to_owned() }
}
