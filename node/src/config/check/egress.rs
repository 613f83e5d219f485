//! What an exit lets out, and who resolves names.

use std::net::IpAddr;
use std::num::NonZeroU64;

use ipnet::IpNet;

use super::Faults;
use super::file::{self, Words};
use crate::config::{Dns, Egress};
use crate::platform::is_elsewhere;

/// The most resolvers that an exit can name.
const RESOLVERS_MAX: usize = 8;

/// Resolvers; those that are `told` to others must not be addresses of this host only.
pub(super) fn dns(key: &str, written: &Words, told: bool, faults: &mut Faults<'_>) -> Dns {
    let texts = match written {
        Words::Word(word) => return if word == "off" { Dns::Off } else { Dns::Auto },
        Words::List(texts) => texts,
    };
    if texts.is_empty() || texts.len() > RESOLVERS_MAX {
        let fix = format!("write 1 to {RESOLVERS_MAX}, or {key} = \"off\"");
        faults.add(key, format!("{} are no number of resolvers", texts.len()), fix);
    }
    let mut servers = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match text.parse::<IpAddr>() {
            Ok(server)
                if server.is_unspecified() || server.is_multicast() || (told && !is_elsewhere(server)) =>
            {
                let problem = format!(
                    "{server} is nobody whom {} could ask",
                    if told { "an edge" } else { "this host" }
                );
                let fix = "write the address of a resolver, such as \"9.9.9.9\"";
                faults.add(format!("{key}[{index}]"), problem, fix);
            }
            Ok(server) => servers.push(server),
            Err(_) => {
                let fix =
                    "write it as \"192.0.2.53\" or \"2001:db8::53\"; a resolver has no port and no name";
                faults.add(format!("{key}[{index}]"), format!("{text:?} is not an IP address"), fix);
            }
        }
    }
    Dns::Given(servers)
}

/// What edges may reach.
pub(super) fn egress(written: &file::Exit, faults: &mut Faults<'_>) -> Egress {
    let mut allow = Vec::with_capacity(written.allow.len());
    for (index, text) in written.allow.iter().enumerate() {
        let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        let key = format!("exit.allow[{index}]");
        match net.map(|net| net.trunc()) {
            Some(net) if net.prefix_len() > 0 && is_elsewhere(net.network()) => allow.push(net),
            Some(net) => {
                let fix = "write the private networks that edges may reach; the internet is always allowed, this host's \
                           loopback and link-local addresses never";
                faults.add(key, format!("{net} cannot be allowed"), fix);
            }
            None => {
                let fix = "write it as \"192.168.1.0/24\" or \"fd00:1::/64\"";
                faults.add(key, format!("{text:?} is no network"), fix);
            }
        }
    }
    Egress {
        allow: IpNet::aggregate(&allow),
        max_rate: written.max_rate.and_then(NonZeroU64::new),
        max_connections: written.max_connections.and_then(NonZeroU64::new),
    }
}
