//! Lending and borrowing uplinks: who consents to what, for how long, and how much is left for others.
//!
//! [`Lender`] judges requests and knows when a lease or a peer's bytes are used up; [`Grants`] says what is
//! left of one direction of an uplink beside its owner's own traffic. [`Borrower`] asks for what it wants,
//! renews what it has and notices what it has lost.
//!
//! ```text
//!  Borrower                                        Lender
//!    LeaseRequest(lease, uplink, exit, address) ──►  judged; a relay is opened
//!    LeaseAccept(port, ttl) ◄──────────────────────  or LeaseRefuse(reason)
//!    LeaseRequest, the same, every 3 s ────────────►  renewed
//!    RateGrants ◄──────────────────────────────────  every 200 ms, Grants per direction
//!    LeaseEnd ◄───────────────────────────────────►  either side; or 10 s without a renewal
//! ```

mod borrower;
mod grants;
mod lender;
#[cfg(test)]
mod tests;

pub use borrower::{BorrowEvent, Borrower, Want};
pub use grants::{Grants, TRICKLE, UNLIMITED};
pub use lender::{Decision, Facts, LeaseKey, Lender, LenderConfig, UplinkFacts};

use std::time::Duration;

/// How long a lease lasts after its last request.
pub const LEASE_TTL: Duration = Duration::from_secs(10);
/// How often a borrower renews.
pub const RENEW_EVERY: Duration = Duration::from_secs(3);
/// How often grants are published.
pub const GRANT_EVERY: Duration = Duration::from_millis(200);
/// A lease of which no grant was heard for so long is dead.
pub const GRANT_SILENCE_MAX: Duration = Duration::from_secs(3);
