//! The supervisor: one ractor actor, used at every inner node of the tree.
//!
//! It keeps its children alive: whatever way a child ends, panic, error, refusal to start, hang, it
//! is started again after a jittered delay that doubles up to a cap. A child that keeps dying is
//! parked, alarmed on and tried again slowly; its siblings are not touched, and no number of deaths
//! brings the supervisor down. The list of children is a [`Plan`] owned one level higher, so a
//! supervisor that dies itself finds it unchanged when it returns.

mod backoff;
mod child;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::task::AbortHandle;

pub use self::backoff::{Backoff, Policy, Verdict};
pub use self::child::{ChildContext, ChildSpec, Control, Plan, Started, Tree};
use crate::registry::{ActorState, Entry};

/// A start that takes longer than this has failed: it runs inside the supervisor's own task.
const START_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a child may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Name of the root; it is not part of its children's names.
const ROOT: &str = "node";

/// Mail of a [`Supervisor`].
#[derive(Debug)]
pub enum SupervisorMsg {
    /// From above or from a test.
    Control(Control),
    /// The plan has changed.
    Reconcile,
    /// The delay of a dead child is over.
    Restart {
        /// Which child.
        name: String,
        /// The incarnation that died; a later start makes the message void.
        died: u64,
    },
    /// Time to ping the children.
    Check,
}

impl From<Control> for SupervisorMsg {
    fn from(control: Control) -> Self {
        Self::Control(control)
    }
}

/// The supervisor actor.
#[derive(Debug)]
pub struct Supervisor;

impl Supervisor {
    /// Starts the root of a tree, which nobody supervises. The handle ends when the root does.
    ///
    /// # Errors
    /// When the runtime refuses it.
    pub async fn spawn_root(
        plan: Arc<Plan>,
        tree: Arc<Tree>,
        policy: Policy,
    ) -> Result<(ActorRef<SupervisorMsg>, tokio::task::JoinHandle<()>), ractor::SpawnErr> {
        let entry = tree.registry.entry(ROOT);
        let incarnation = entry.begin();
        let context = ChildContext { name: ROOT.to_owned(), entry, incarnation, tree };
        let entry = Arc::clone(&context.entry);
        let root = Actor::spawn(context.actor_name(), Self, (plan, context, policy)).await?;
        entry.set_state(ActorState::Running);
        Ok(root)
    }
}

struct Child {
    version: u64,
    spec: ChildSpec,
    entry: Arc<Entry>,
    incarnation: u64,
    started: Instant,
    running: Option<Started>,
    backoff: Backoff,
    parked: bool,
    pings_missed: u32,
    retry: Option<AbortHandle>,
}

/// State of a [`Supervisor`].
pub struct SupervisorState {
    plan: Arc<Plan>,
    context: ChildContext,
    policy: Policy,
    children: BTreeMap<String, Child>,
    ping: u64,
    checked: Instant,
    ticker: AbortHandle,
}

impl fmt::Debug for SupervisorState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.children.keys()).finish()
    }
}

impl Drop for SupervisorState {
    fn drop(&mut self) {
        self.ticker.abort();
        for child in self.children.values() {
            if let Some(retry) = &child.retry {
                retry.abort();
            }
        }
    }
}

impl Actor for Supervisor {
    type Msg = SupervisorMsg;
    type State = SupervisorState;
    type Arguments = (Arc<Plan>, ChildContext, Policy);

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        (plan, context, policy): Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        *plan.current.lock() = Some(myself.clone());
        myself.cast(SupervisorMsg::Reconcile)?;
        let ticker = tokio::spawn(async move {
            loop {
                tokio::time::sleep(policy.ping_every).await;
                if myself.cast(SupervisorMsg::Check).is_err() {
                    return;
                }
            }
        });
        Ok(SupervisorState {
            plan,
            context,
            policy,
            children: BTreeMap::new(),
            ping: 0,
            checked: Instant::now(),
            ticker: ticker.abort_handle(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMsg::Control(control) => control.obey(&state.context.entry).await?,
            SupervisorMsg::Reconcile => state.reconcile(&myself).await,
            SupervisorMsg::Restart { name, died } => {
                if state.children.get(&name).is_some_and(|child| child.incarnation == died) {
                    state.start(&myself, &name).await;
                }
            }
            SupervisorMsg::Check => state.check(),
        }
        state.context.entry.count_handled(1);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(cell, _, reason) => {
                state.died(&myself, cell.get_id(), &reason.unwrap_or_else(|| "ended".to_owned()));
            }
            SupervisionEvent::ActorFailed(cell, error) => {
                state.died(&myself, cell.get_id(), &error.to_string());
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {}
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        myself: ActorRef<Self::Msg>,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        // Left alone, the children would be killed without their own post_stop.
        myself.get_cell().stop_children_and_wait(None, Some(STOP_TIMEOUT)).await;
        for child in state.children.values() {
            child.entry.set_state(ActorState::Stopped);
        }
        Ok(())
    }
}

impl SupervisorState {
    /// Makes the children match the plan.
    async fn reconcile(&mut self, myself: &ActorRef<SupervisorMsg>) {
        let wanted = self.plan.children.lock().clone();
        let stale = |name: &String, child: &Child| wanted.get(name).is_none_or(|(v, _)| *v != child.version);
        let gone: Vec<String> =
            self.children.iter().filter(|(n, c)| stale(n, c)).map(|(n, _)| n.clone()).collect();
        for name in gone {
            let Some(child) = self.children.remove(&name) else { continue };
            if let Some(retry) = &child.retry {
                retry.abort();
            }
            if let Some(running) = child.running {
                stop_or_kill(&running.cell).await;
            }
            child.entry.set_state(ActorState::Stopped);
            if !wanted.contains_key(&name) {
                self.context.tree.registry.forget(child.entry.name());
            }
        }
        for (name, (version, spec)) in wanted {
            if self.children.contains_key(&name) {
                continue;
            }
            let entry = self.context.tree.registry.entry(&self.path_of(&name));
            let child = Child {
                version,
                spec,
                entry,
                incarnation: 0,
                started: Instant::now(),
                running: None,
                backoff: Backoff::new(self.policy),
                parked: false,
                pings_missed: 0,
                retry: None,
            };
            self.children.insert(name.clone(), child);
            self.start(myself, &name).await;
        }
    }

    fn path_of(&self, name: &str) -> String {
        if self.context.name == ROOT { name.to_owned() } else { format!("{}/{name}", self.context.name) }
    }

    async fn start(&mut self, myself: &ActorRef<SupervisorMsg>, name: &str) {
        let Some(child) = self.children.get_mut(name) else { return };
        child.incarnation = child.entry.begin();
        child.started = Instant::now();
        child.pings_missed = 0;
        child.retry = None;
        let context = ChildContext {
            name: child.entry.name().to_owned(),
            entry: Arc::clone(&child.entry),
            incarnation: child.incarnation,
            tree: Arc::clone(&self.context.tree),
        };
        let start = (child.spec.start)(context, myself.get_cell());
        // A refused start sends no supervision event: it is handled here like any other death.
        match tokio::time::timeout(START_TIMEOUT, start).await {
            Ok(Ok(running)) => {
                let mail = Arc::clone(&running.mail);
                child.entry.set_fault_port(Arc::new(move |fault| mail(Control::Inject(fault))));
                child.entry.answer(self.ping);
                child.entry.set_state(ActorState::Running);
                child.running = Some(running);
            }
            Ok(Err(error)) => self.bury(myself, name, &format!("did not start: {error}")),
            Err(_elapsed) => self.bury(myself, name, "did not start in time"),
        }
    }

    fn died(&mut self, myself: &ActorRef<SupervisorMsg>, id: ActorId, reason: &str) {
        let is_it = |child: &Child| child.running.as_ref().is_some_and(|r| r.cell.get_id() == id);
        let Some(name) = self.children.iter().find(|(_, c)| is_it(c)).map(|(n, _)| n.clone()) else {
            return;
        };
        let hung = self.children.get(&name).is_some_and(|c| c.pings_missed >= c.spec.pings_missed_max);
        self.bury(myself, &name, if hung { "handles no mail" } else { reason });
    }

    /// Notes a death and schedules the next start.
    fn bury(&mut self, myself: &ActorRef<SupervisorMsg>, name: &str, reason: &str) {
        let Some(child) = self.children.get_mut(name) else { return };
        child.running = None;
        child.entry.fail(reason);
        let lived = child.started.elapsed();
        let verdict = child.backoff.died(lived, &mut rand::rng());
        let actor = child.entry.name();
        let delay = match verdict {
            Verdict::Restart(delay) => {
                child.parked = false;
                child.entry.set_state(ActorState::Restarting);
                tracing::warn!(actor, reason, ?lived, ?delay, "actor died, it is started again");
                delay
            }
            Verdict::Park(delay) => {
                child.entry.set_state(ActorState::Parked);
                if child.parked {
                    tracing::warn!(actor, reason, ?delay, "parked actor died again");
                } else {
                    tracing::error!(
                        actor,
                        reason,
                        ?delay,
                        "actor keeps dying, it is parked and tried slowly"
                    );
                }
                child.parked = true;
                delay
            }
        };
        let (myself, name, died) = (myself.clone(), name.to_owned(), child.incarnation);
        let retry = tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let _ = myself.cast(SupervisorMsg::Restart { name, died });
        });
        child.retry = Some(retry.abort_handle());
    }

    /// Pings every child and kills those that have stopped to answer.
    fn check(&mut self) {
        // Checks that piled up are one: the children had no chance to answer in between.
        if self.checked.elapsed() < self.policy.ping_every / 2 {
            return;
        }
        self.checked = Instant::now();
        for child in self.children.values_mut() {
            let Some(running) = &child.running else { continue };
            if child.entry.answered() >= self.ping {
                child.pings_missed = 0;
            } else {
                child.pings_missed += 1;
            }
            if child.pings_missed >= child.spec.pings_missed_max {
                running.cell.kill();
            } else {
                (running.mail)(Control::Ping(self.ping + 1));
            }
        }
        self.ping += 1;
    }
}

async fn stop_or_kill(cell: &ActorCell) {
    if cell.stop_and_wait(None, Some(STOP_TIMEOUT)).await.is_err() {
        cell.kill();
    }
}
