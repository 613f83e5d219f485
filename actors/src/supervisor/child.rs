//! What a supervisor knows of its children: how to start one, how to talk to it, and the plan of
//! which there are to be.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef};

use super::{Policy, Supervisor, SupervisorMsg};
use crate::driver::{Drive, DrivenActor};
use crate::registry::{Entry, Fault, Registry};

/// Unanswered pings after which an actor counts as hung: 600 ms for a leaf. Supervisors start and
/// stop children inside their handlers and get [`SUPERVISOR_PINGS_MISSED_MAX`].
const PINGS_MISSED_MAX: u32 = 3;
/// 5 s at five pings a second.
const SUPERVISOR_PINGS_MISSED_MAX: u32 = 25;

/// What all actors of one node share.
#[derive(Debug)]
pub struct Tree {
    /// Unique in this process; ractor's names are global, and tests run several nodes.
    pub prefix: String,
    /// The records of all actors.
    pub registry: Arc<Registry>,
}

/// Mail that every actor understands.
#[derive(Clone, Copy, Debug)]
pub enum Control {
    /// Answer, to show that mail is still handled.
    Ping(u64),
    /// Fail in this way (test and diagnosis hook).
    Inject(Fault),
}

impl Control {
    /// Does what the message asks for.
    ///
    /// # Errors
    /// For [`Fault::Error`].
    ///
    /// # Panics
    /// For [`Fault::Panic`].
    pub async fn obey(self, entry: &Entry) -> Result<(), ActorProcessingErr> {
        match self {
            Self::Ping(number) => entry.answer(number),
            Self::Inject(Fault::Panic) => panic!("injected panic"),
            Self::Inject(Fault::Error) => return Err("injected error".into()),
            Self::Inject(Fault::Hang) => std::future::pending().await,
        }
        Ok(())
    }
}

/// What a child is told at its start.
#[derive(Clone)]
pub struct ChildContext {
    /// Path in the tree.
    pub name: String,
    /// Its record.
    pub entry: Arc<Entry>,
    /// Number of this start, from 1.
    pub incarnation: u64,
    /// The node's shared part.
    pub tree: Arc<Tree>,
}

impl ChildContext {
    pub(super) fn actor_name(&self) -> Option<String> {
        Some(format!("{}/{}", self.tree.prefix, self.name))
    }
}

/// A child that has started.
pub struct Started {
    pub(super) cell: ActorCell,
    pub(super) mail: Arc<dyn Fn(Control) -> bool + Send + Sync>,
}

impl Started {
    /// From the reference that `spawn_linked` gave.
    pub fn new<M: From<Control> + Send + 'static>(actor: &ActorRef<M>) -> Self {
        let mailbox = actor.clone();
        let mail = move |control: Control| mailbox.cast(control.into()).is_ok();
        Self { cell: actor.get_cell(), mail: Arc::new(mail) }
    }
}

type StartFuture = Pin<Box<dyn Future<Output = Result<Started, ActorProcessingErr>> + Send>>;

/// How to start a child, as often as needed.
#[derive(Clone)]
pub struct ChildSpec {
    name: String,
    pub(super) pings_missed_max: u32,
    pub(super) start: Arc<dyn Fn(ChildContext, ActorCell) -> StartFuture + Send + Sync>,
}

impl ChildSpec {
    /// A child called `name`, started by `start`, which is given the supervisor to link it to.
    pub fn new<F, Fut>(name: impl Into<String>, start: F) -> Self
    where
        F: Fn(ChildContext, ActorCell) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Started, ActorProcessingErr>> + Send + 'static,
    {
        let start = Arc::new(move |context, above| -> StartFuture { Box::pin(start(context, above)) });
        Self { name: name.into(), pings_missed_max: PINGS_MISSED_MAX, start }
    }

    /// A child made of drivers, to which `lent` is lent at each start.
    pub fn driven<D: Drive>(name: impl Into<String>, lent: D::Lent) -> Self {
        Self::new(name, move |context: ChildContext, above| {
            let lent = lent.clone();
            async move {
                let (name, actor) = (context.actor_name(), DrivenActor::<D>::new());
                let (actor, _) = Actor::spawn_linked(name, actor, (lent, context), above).await?;
                Ok(Started::new(&actor))
            }
        })
    }

    /// A supervisor of the children in `plan`.
    pub fn supervisor(name: impl Into<String>, plan: Arc<Plan>, policy: Policy) -> Self {
        let mut spec = Self::new(name, move |context: ChildContext, above| {
            let plan = Arc::clone(&plan);
            async move {
                let name = context.actor_name();
                let arguments = (plan, context, policy);
                let (actor, _) = Actor::spawn_linked(name, Supervisor, arguments, above).await?;
                Ok(Started::new(&actor))
            }
        });
        spec.pings_missed_max = SUPERVISOR_PINGS_MISSED_MAX;
        spec
    }
}

impl fmt::Debug for ChildSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChildSpec({})", self.name)
    }
}

/// The children a supervisor keeps alive. Shared with whoever adds and removes some.
#[derive(Default)]
pub struct Plan {
    pub(super) children: Mutex<BTreeMap<String, (u64, ChildSpec)>>,
    version: AtomicU64,
    pub(super) current: Mutex<Option<ActorRef<SupervisorMsg>>>,
}

impl Plan {
    /// A plan of `children`.
    pub fn new(children: impl IntoIterator<Item = ChildSpec>) -> Arc<Self> {
        let plan = Arc::<Self>::default();
        for child in children {
            plan.add(child);
        }
        plan
    }

    /// Adds a child, or replaces the one of the same name by a new one.
    pub fn add(&self, child: ChildSpec) {
        let version = self.version.fetch_add(1, Ordering::Relaxed);
        self.children.lock().insert(child.name.clone(), (version, child));
        self.reconcile();
    }

    /// Removes a child; it is stopped.
    pub fn remove(&self, name: &str) {
        self.children.lock().remove(name);
        self.reconcile();
    }

    /// Forgets all children and with them what their starts have captured; the node has stopped.
    pub fn clear(&self) {
        self.children.lock().clear();
        *self.current.lock() = None;
    }

    /// The names of the children.
    pub fn names(&self) -> Vec<String> {
        self.children.lock().keys().cloned().collect()
    }

    fn reconcile(&self) {
        if let Some(supervisor) = &*self.current.lock() {
            let _ = supervisor.cast(SupervisorMsg::Reconcile);
        }
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}
