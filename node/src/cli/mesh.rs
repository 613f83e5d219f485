//! `mwb-node init`, `invite`, `join`, `members` and `revoke`: who belongs to the mesh.

use std::io::{IsTerminal, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use mwb_actors::identity::Identity;
use mwb_actors::membership::join as mesh_join;
use mwb_actors::membership::store::{InviteSpec, Store, StoreError};
use mwb_proto::mesh::{MemberRecord, Roles, TOKEN_TEXT_MAX, Token};
use serde_json::json;

use super::{Failure, REFUSED, StateDir, block_on};
use crate::platform::MARK;
use crate::{config, identity, output};

/// Where an exit listens unless it says otherwise.
const EXIT_PORT: u16 = 9000;
/// A token in a file or on standard input may have line ends and spaces in it.
const TOKEN_FILE_MAX: u64 = 16 * TOKEN_TEXT_MAX as u64;

#[derive(Args)]
pub(super) struct InitArgs {
    #[command(flatten)]
    state: StateDir,
    /// This node is the mesh's exit: the others' traffic leaves to the internet here
    #[arg(long, requires = "public")]
    exit: bool,
    /// Where the others reach this node, ADDRESS or ADDRESS:PORT (9000 if not said); may be repeated
    #[arg(long, value_name = "ADDR", value_parser = public_address, requires = "exit")]
    public: Vec<SocketAddr>,
    /// This node's name in the mesh [default: the host's name]
    #[arg(long)]
    name: Option<String>,
}

#[derive(Args)]
pub(super) struct InviteArgs {
    #[command(flatten)]
    state: StateDir,
    /// What the new member may do: edge (use exits), lender (lend uplinks), exit; separated by commas
    #[arg(long, value_name = "ROLES", default_value = "edge,lender")]
    role: Roles,
    /// How many nodes may join with the token
    #[arg(long, default_value_t = 1)]
    uses: u32,
    /// How long the token may be used, by this node's clock: 30m, 24h, 7d
    #[arg(long, value_parser = config::duration, default_value = "24h")]
    ttl: Duration,
    /// Where the new member reaches this node, if not at its public address; may be repeated
    #[arg(long, value_name = "ADDR", value_parser = public_address)]
    address: Vec<SocketAddr>,
}

#[derive(Args)]
pub(super) struct JoinArgs {
    #[command(flatten)]
    state: StateDir,
    /// The token; - reads it from standard input. Others can see the arguments of a process: prefer
    /// --file, standard input or the variable MWB_TOKEN where that matters
    #[arg(env = "MWB_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Read the token from this file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// This node's name in the mesh [default: the host's name]
    #[arg(long)]
    name: Option<String>,
    /// Where the others reach this node, should the token make it an exit; may be repeated
    #[arg(long, value_name = "ADDR", value_parser = public_address)]
    public: Vec<SocketAddr>,
}

#[derive(Args)]
pub(super) struct MembersArgs {
    #[command(flatten)]
    state: StateDir,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct RevokeArgs {
    #[command(flatten)]
    state: StateDir,
    /// Name or node id of the member
    member: String,
}

/// Makes a mesh with this node as its root.
///
/// # Errors
/// When the node has a mesh, or its description is out of bounds.
pub(super) fn init(args: &InitArgs) -> Result<(), Failure> {
    let (identity, store) = open(&args.state)?;
    let name = args.name.clone().unwrap_or_else(config::host_name);
    let roles = if args.exit { Roles::EXIT } else { Roles::EDGE.with(Roles::LENDER) };
    let mesh = store.found(&identity, (&name, roles, &args.public)).map_err(failure)?;
    output::line(&mesh.to_string())?;
    output::progress(&format!(
        "made the mesh {mesh}; this node is its member {name} ({roles}) and keeps its root key\n\
         next: mwb-node run here, and mwb-node invite for each of the other hosts"
    ));
    Ok(())
}

/// Prints a new token.
///
/// # Errors
/// When this node cannot invite, or a setting is out of bounds.
pub(super) fn invite(args: &InviteArgs) -> Result<(), Failure> {
    let (identity, store) = open(&args.state)?;
    let spec =
        InviteSpec { roles: args.role, uses: args.uses, ttl: args.ttl, addresses: args.address.clone() };
    let token = store.invite(identity.node_id(), &spec).map_err(failure)?;
    let text = token.encode().map_err(|error| Failure::new(error.to_string()))?;
    output::line(&text)?;
    let nodes = if args.uses == 1 { "one node".to_owned() } else { format!("{} nodes", args.uses) };
    output::progress(&format!(
        "lets {nodes} join as {} within {:?}, while this node runs; keep it secret\nnext: mwb-node join TOKEN on the \
         other host",
        args.role, args.ttl
    ));
    Ok(())
}

/// Joins the mesh of a token.
///
/// # Errors
/// What is wrong with the token, or why the inviter did not let this node in.
pub(super) fn join(args: &JoinArgs) -> Result<(), Failure> {
    let refused = |message: String| Failure { code: REFUSED, message };
    let token: Token = token_text(args)?.parse().map_err(|error| refused(format!("{error}")))?;
    let (identity, store) = open(&args.state)?;
    let me = identity.node_id();
    match store.prepare(me) {
        Err(StoreError::Member { mesh, .. }) if mesh == token.mesh() => {
            output::progress("this node is a member of this mesh already");
            return Ok(output::line(&mesh.to_string())?);
        }
        Err(error @ StoreError::Member { .. }) => {
            return Err(Failure::new(format!("the token is for another mesh: {error}")));
        }
        other => other.map_err(failure)?,
    }
    let name = args.name.clone().unwrap_or_else(config::host_name);
    let joined = block_on(mesh_join::join(&identity, &token, &name, &args.public, Some(MARK)))?;
    let members = joined.map_err(|error| Failure::new(error.to_string()))?;
    store.joined(me, &members).map_err(failure)?;
    let (mesh, count) = (members.mesh(), members.records().len());
    output::line(&mesh.to_string())?;
    let own = members.record(me);
    let (name, roles) = own.map(|own| (own.name.as_str(), own.roles)).unwrap_or_default();
    output::progress(&format!(
        "joined the mesh {mesh} as {name} ({roles}); it has {count} members\nnext: mwb-node run"
    ));
    Ok(())
}

/// Prints who belongs to the mesh, as far as this node knows.
///
/// # Errors
/// When it belongs to none.
pub(super) fn members(args: &MembersArgs) -> Result<(), Failure> {
    let (identity, store) = open(&args.state)?;
    let members = store.load().map_err(failure)?.ok_or_else(|| failure(StoreError::NoMember))?;
    let me = identity.node_id();
    let records = members.records().map(|signed| signed.record());
    if args.json {
        let list: Vec<_> = records.map(|record| member_json(record, record.node() == me)).collect();
        let revoked: Vec<_> =
            members.revocations().map(|signed| signed.revocation().node.to_string()).collect();
        let value = json!({ "mesh": members.mesh(), "node_id": me, "members": list, "revoked": revoked });
        let text = serde_json::to_string_pretty(&value).expect("a JSON value is JSON");
        return Ok(output::line(&text)?);
    }
    let mut text = format!("mesh {}\n", members.mesh());
    let mut records: Vec<_> = records.collect();
    records.sort_by(|a, b| a.name.cmp(&b.name));
    for record in records {
        let addresses: Vec<_> = record.addresses.iter().map(ToString::to_string).collect();
        let (node, roles) = (record.node(), record.roles.to_string());
        let here = if node == me { "  (this node)" } else { "" };
        text.push_str(&format!("{:<20}{roles:<20}{node}  {}{here}\n", record.name, addresses.join(" ")));
    }
    Ok(output::text(&text)?)
}

/// Ends a membership.
///
/// # Errors
/// When this node cannot, or there is no such member.
pub(super) fn revoke(args: &RevokeArgs) -> Result<(), Failure> {
    let (identity, store) = open(&args.state)?;
    let node = store.revoke(identity.node_id(), &args.member).map_err(failure)?;
    output::progress(
        "revoked; the running nodes learn it within seconds\nnext, on that host if it is yours: stop mwb-node (sudo systemctl \
         stop mwb-node), or mwb-node join with a new token",
    );
    Ok(output::line(&node.to_string())?)
}

fn open(state: &StateDir) -> Result<(Identity, Store), Failure> {
    Ok((identity::load_or_make(&state.state_dir)?, Store::new(&state.state_dir)))
}

fn failure(error: StoreError) -> Failure {
    let code = match error {
        StoreError::Issue(_) | StoreError::Address(_) => REFUSED,
        _ => super::FAILED,
    };
    Failure { code, message: error.to_string() }
}

fn member_json(record: &MemberRecord, is_here: bool) -> serde_json::Value {
    json!({
        "name": record.name,
        "node_id": record.node(),
        "roles": record.roles.names().collect::<Vec<_>>(),
        "serial": record.serial,
        "addresses": record.addresses,
        "this_node": is_here,
    })
}

/// The token from wherever it was given.
fn token_text(args: &JoinArgs) -> Result<String, Failure> {
    let refused = |message: String| Failure { code: REFUSED, message };
    if let Some(file) = &args.file {
        let open = std::fs::File::open(file);
        return read_token(open, &format!("the token file {}", file.display()));
    }
    match &args.token {
        Some(token) if token != "-" => Ok(token.clone()),
        None if std::io::stdin().is_terminal() => Err(refused(
            "no token: give it as the argument, with --file, in MWB_TOKEN or on standard input".to_owned(),
        )),
        _ => read_token(Ok(std::io::stdin().lock()), "the token from standard input"),
    }
}

fn read_token(source: std::io::Result<impl Read>, what: &str) -> Result<String, Failure> {
    let mut text = String::new();
    source
        .and_then(|source| source.take(TOKEN_FILE_MAX).read_to_string(&mut text))
        .map_err(|error| Failure { code: REFUSED, message: format!("reading {what}: {error}") })?;
    Ok(text)
}

fn public_address(text: &str) -> Result<SocketAddr, String> {
    let with_port = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, EXIT_PORT));
    let address = text.parse::<SocketAddr>().ok().or(with_port.ok());
    address
        .filter(|address| {
            address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast()
        })
        .ok_or_else(|| {
            "write an address of this host as 203.0.113.5, 203.0.113.5:9000 or [2001:db8::5]:9000".into()
        })
}
