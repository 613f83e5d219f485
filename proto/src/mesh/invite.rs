//! What the inviter remembers of its invites.
//!
//! Time is the inviter's own, in seconds, given by the caller; a joiner's clock means nothing. The
//! highest time ever seen is kept with the invites, so a clock that is set back revives nothing.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::token::{INVITE_ID_LEN, SECRET_LEN};
use super::{JoinProof, NodeId, Roles};

/// The most invites remembered, those that are over included.
pub const INVITES_MAX: usize = 256;
/// The most nodes that one invite lets in.
pub const USES_MAX: u32 = 256;
/// Shortest life of an invite.
pub const TTL_MIN: Duration = Duration::from_secs(1);
/// Longest life of an invite: a year.
pub const TTL_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// One invite.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    /// Its id, as in the token.
    pub id: [u8; INVITE_ID_LEN],
    /// Its secret, as in the token.
    pub secret: [u8; SECRET_LEN],
    /// What those become who use it.
    pub roles: Roles,
    /// From then on it is over; seconds of the inviter's clock.
    pub expires: u64,
    /// How many nodes it lets in.
    pub uses: u32,
    /// Who has used it. A node that comes again, as its answer was lost, uses it up no further.
    pub used_by: Vec<NodeId>,
}

impl Invite {
    fn is_over(&self, now: u64) -> bool {
        now >= self.expires || self.used_by.len() >= self.uses as usize
    }
}

impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (used, uses) = (self.used_by.len(), self.uses);
        write!(f, "Invite({} used {used} of {uses}, until {})", self.roles, self.expires)
    }
}

/// Why no invite was made; nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IssueError {
    /// The number of uses is out of bounds.
    #[error("an invite is for 1 to {USES_MAX} nodes")]
    Uses,
    /// The time is out of bounds.
    #[error("an invite lasts from a second to a year")]
    Ttl,
    /// It gives no role.
    #[error("an invite gives at least one role")]
    Roles,
    /// An invite with this id exists.
    #[error("this invite exists already")]
    Exists,
    /// Too many can still be used.
    #[error("{INVITES_MAX} invites can still be used; wait until one is over")]
    Full,
}

/// Why an invite lets nobody in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RedeemError {
    /// No invite has this id.
    #[error("this invite is not known here")]
    Unknown,
    /// The proof is wrong: whoever sent it does not know the secret.
    #[error("the proof of the invite is wrong")]
    Proof,
    /// It is too late.
    #[error("this invite has expired")]
    Expired,
    /// All its uses are taken.
    #[error("this invite is used up")]
    UsedUp,
}

/// What a redeemed invite gives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Redeemed {
    /// Roles of the new member.
    pub roles: Roles,
    /// The secret, for the answer's proof.
    pub secret: [u8; SECRET_LEN],
}

impl fmt::Debug for Redeemed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redeemed({})", self.roles)
    }
}

/// All invites of a node; stored by its shell after every change.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invites {
    /// Highest time seen.
    clock: u64,
    invites: Vec<Invite>,
}

impl Invites {
    /// Makes an invite. `id` and `secret` are random. When there are too many, the one that has been
    /// over for longest is forgotten.
    ///
    /// # Errors
    /// Why not.
    pub fn issue(
        &mut self,
        id: [u8; INVITE_ID_LEN],
        secret: [u8; SECRET_LEN],
        (roles, uses, ttl): (Roles, u32, Duration),
        now: u64,
    ) -> Result<(), IssueError> {
        if !(1..=USES_MAX).contains(&uses) {
            return Err(IssueError::Uses);
        }
        if !(TTL_MIN..=TTL_MAX).contains(&ttl) {
            return Err(IssueError::Ttl);
        }
        if roles == Roles::NONE {
            return Err(IssueError::Roles);
        }
        if self.invites.iter().any(|invite| invite.id == id) {
            return Err(IssueError::Exists);
        }
        let now = self.advance(now);
        if self.invites.len() >= INVITES_MAX {
            let over = self.invites.iter().enumerate().filter(|(_, invite)| invite.is_over(now));
            let (oldest, _) = over.min_by_key(|(_, invite)| invite.expires).ok_or(IssueError::Full)?;
            self.invites.remove(oldest);
        }
        let expires = now.saturating_add(ttl.as_secs().max(1));
        self.invites.push(Invite { id, secret, roles, expires, uses, used_by: Vec::new() });
        Ok(())
    }

    /// Lets the node `joiner` in, if `proof` shows that it holds the token.
    ///
    /// # Errors
    /// Why not. What is wrong beyond the proof is told only to those who hold the token.
    pub fn redeem(
        &mut self,
        id: &[u8; INVITE_ID_LEN],
        proof: &[u8],
        (exporter, joiner, inviter): (&[u8; 32], NodeId, NodeId),
        now: u64,
    ) -> Result<Redeemed, RedeemError> {
        let now = self.advance(now);
        let invite = self.invites.iter_mut().find(|invite| invite.id == *id).ok_or(RedeemError::Unknown)?;
        if !(JoinProof { secret: &invite.secret, exporter, joiner, inviter }).is_request(proof) {
            return Err(RedeemError::Proof);
        }
        if now >= invite.expires {
            return Err(RedeemError::Expired);
        }
        if !invite.used_by.contains(&joiner) {
            if invite.used_by.len() >= invite.uses as usize {
                return Err(RedeemError::UsedUp);
            }
            invite.used_by.push(joiner);
        }
        Ok(Redeemed { roles: invite.roles, secret: invite.secret })
    }

    /// All that are remembered, oldest first.
    pub fn all(&self) -> &[Invite] {
        &self.invites
    }

    fn advance(&mut self, now: u64) -> u64 {
        self.clock = self.clock.max(now);
        self.clock
    }
}
