//! Drivers, and the actor that owns them.
//!
//! A driver is a tokio task that owns a machine and waits on sockets, queues and timers, which an
//! actor's handler must not. Its actor watches it: a driver that ends makes the actor fail, and so
//! its supervisor starts both anew; a driver that stops answering the progress ping for three
//! rounds counts as hung; dropping the actor's state aborts the task.

use std::fmt;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::clock;
use crate::registry::{ActorState, Entry, Fault};
use crate::supervisor::{ChildContext, Control};

/// How often a driver is asked for a sign of life.
const PING_EVERY: Duration = Duration::from_millis(200);
/// Rounds without progress after which a driver counts as hung: 600 ms.
const PINGS_MISSED_MAX: u32 = 3;

/// Why a driver ended.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// A system call failed in a way that a fresh start may cure.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Something else that a fresh start may cure.
    #[error("{0}")]
    Failed(String),
    /// A fault injected by a test.
    #[error("injected fault")]
    Injected,
}

impl DriverError {
    /// For `map_err`: names what was tried.
    pub fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// The sign of life of one driver. Cheap to clone.
#[derive(Clone)]
pub struct Pulse {
    inner: Arc<PulseInner>,
}

struct PulseInner {
    ticks: AtomicU64,
    fault: AtomicU8,
    bell: Notify,
    entry: Arc<Entry>,
    actor: Arc<Entry>,
}

impl Pulse {
    fn new(entry: Arc<Entry>, actor: Arc<Entry>) -> Self {
        let (ticks, fault) = (AtomicU64::new(0), AtomicU8::new(0));
        Self { inner: Arc::new(PulseInner { ticks, fault, bell: Notify::new(), entry, actor }) }
    }

    /// A pulse that nobody watches, for machinery run outside an actor in tests.
    pub fn unwatched(name: &str) -> Self {
        let registry = crate::registry::Registry::new();
        Self::new(registry.entry(&format!("{name}/driver")), registry.entry(name))
    }

    /// Tells the actor that the driver makes progress; called once per turn of the driver's loop.
    ///
    /// # Errors
    /// When a test injected [`Fault::Error`].
    ///
    /// # Panics
    /// When a test injected [`Fault::Panic`].
    pub async fn beat(&self) -> Result<(), DriverError> {
        self.inner.ticks.fetch_add(1, Ordering::Relaxed);
        match self.inner.fault.load(Ordering::Relaxed) {
            0 => Ok(()),
            1 => panic!("injected panic"),
            2 => Err(DriverError::Injected),
            _ => std::future::pending().await,
        }
    }

    /// Returns when somebody wants a sign of life; every wait of a driver selects on it.
    pub async fn asked(&self) {
        self.inner.bell.notified().await;
    }

    /// Waits for `work` while answering pings: for a driver's steps that take long.
    ///
    /// # Errors
    /// As [`beat`](Self::beat).
    pub async fn alive_during<F: Future>(&self, work: F) -> Result<F::Output, DriverError> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                output = &mut work => return Ok(output),
                () = self.asked() => self.beat().await?,
            }
        }
    }

    /// Adds to the work counters of driver and actor that `status` shows.
    pub fn count_handled(&self, n: u64) {
        self.inner.entry.count_handled(n);
        self.inner.actor.count_handled(n);
    }

    fn inject(&self, fault: Fault) {
        let code = match fault {
            Fault::Panic => 1,
            Fault::Error => 2,
            Fault::Hang => 3,
        };
        self.inner.fault.store(code, Ordering::Relaxed);
        self.inner.bell.notify_one();
    }
}

impl fmt::Debug for Pulse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pulse({})", self.inner.entry.name())
    }
}

struct Member {
    role: &'static str,
    pulse: Pulse,
    ticks_seen: u64,
    missed: u32,
    task: AbortHandle,
}

/// The drivers of one actor; aborted when dropped.
pub struct Crew {
    context: ChildContext,
    actor: ActorRef<DrivenMsg>,
    members: Vec<Member>,
}

impl Crew {
    /// Starts a driver. `make` gets its pulse and returns its future, which is not expected to end.
    pub fn launch<F, Fut>(&mut self, role: &'static str, make: F)
    where
        F: FnOnce(Pulse) -> Fut,
        Fut: Future<Output = Result<(), DriverError>> + Send + 'static,
    {
        let entry = self.context.tree.registry.entry(&format!("{}/{role}", self.context.name));
        entry.begin();
        entry.set_state(ActorState::Running);
        let pulse = Pulse::new(Arc::clone(&entry), Arc::clone(&self.context.entry));
        entry.set_fault_port(Arc::new({
            let pulse = pulse.clone();
            move |fault| {
                pulse.inject(fault);
                true
            }
        }));
        let task = tokio::spawn(make(pulse.clone()));
        self.members.push(Member { role, pulse, ticks_seen: 0, missed: 0, task: task.abort_handle() });
        let actor = self.actor.clone();
        tokio::spawn(async move {
            let reason = match task.await {
                Ok(Ok(())) => "ended".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(error) if error.is_cancelled() => return,
                Err(error) => panic_text(error),
            };
            entry.fail(&reason);
            entry.set_state(ActorState::Restarting);
            let _ = actor.cast(DrivenMsg::DriverEnded { role, reason });
        });
    }

    /// The context of the owning actor: its name and incarnation.
    pub fn context(&self) -> &ChildContext {
        &self.context
    }

    /// One round of pings; names the driver that has hung, if any.
    fn ping(&mut self) -> Option<&'static str> {
        let mut hung = None;
        for member in &mut self.members {
            let ticks = member.pulse.inner.ticks.load(Ordering::Relaxed);
            if ticks == member.ticks_seen {
                member.missed += 1;
            } else {
                member.missed = 0;
                member.ticks_seen = ticks;
            }
            if member.missed >= PINGS_MISSED_MAX {
                member.pulse.inner.entry.fail("makes no progress");
                member.pulse.inner.entry.set_state(ActorState::Restarting);
                hung = Some(member.role);
            }
            member.pulse.inner.bell.notify_one();
        }
        hung
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for member in &self.members {
            member.task.abort();
        }
    }
}

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.members.iter().map(|member| member.role)).finish()
    }
}

fn panic_text(error: tokio::task::JoinError) -> String {
    let payload = error.into_panic();
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned());
    format!("panicked: {text}")
}

/// A kind of actor that is made of drivers.
pub trait Drive: Send + Sync + 'static {
    /// What the supervisor lends: queues, sockets, tables. Survives the actor.
    type Lent: Clone + Send + Sync + 'static;

    /// Starts the drivers of a new incarnation.
    ///
    /// # Errors
    /// When one cannot start; counts as a death of the actor.
    fn launch(lent: &Self::Lent, crew: &mut Crew) -> Result<(), DriverError>;
}

/// Mail of a [`DrivenActor`].
#[derive(Debug)]
pub enum DrivenMsg {
    /// From the supervisor or a test.
    Control(Control),
    /// A driver came to its end.
    DriverEnded {
        /// Which one.
        role: &'static str,
        /// Why.
        reason: String,
    },
    /// Time to ask the drivers for a sign of life.
    Check,
}

impl From<Control> for DrivenMsg {
    fn from(control: Control) -> Self {
        Self::Control(control)
    }
}

/// The ractor actor around the drivers of kind `D`.
pub struct DrivenActor<D>(PhantomData<fn() -> D>);

impl<D> DrivenActor<D> {
    /// The actor, to be spawned by a [`ChildSpec`](crate::supervisor::ChildSpec).
    pub(crate) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<D> fmt::Debug for DrivenActor<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DrivenActor")
    }
}

/// State of a [`DrivenActor`].
#[derive(Debug)]
pub struct DrivenState {
    crew: Crew,
    entry: Arc<Entry>,
    checked: Instant,
    ticker: AbortHandle,
}

impl Drop for DrivenState {
    fn drop(&mut self) {
        self.ticker.abort();
    }
}

/// Time to the next round of pings. All actors of the machine keep the same beat: one wake-up serves them all.
fn next_round() -> Duration {
    let every = PING_EVERY.as_nanos() as u64;
    Duration::from_nanos(every - clock::now().as_nanos() % every)
}

impl<D: Drive> Actor for DrivenActor<D> {
    type Msg = DrivenMsg;
    type State = DrivenState;
    type Arguments = (D::Lent, ChildContext);

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        (lent, context): Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let entry = Arc::clone(&context.entry);
        let mut crew = Crew { context, actor: myself.clone(), members: Vec::new() };
        D::launch(&lent, &mut crew)?;
        let ticker = tokio::spawn(async move {
            // A new driver gets a whole round before its first.
            tokio::time::sleep(PING_EVERY).await;
            loop {
                tokio::time::sleep(next_round()).await;
                if myself.cast(DrivenMsg::Check).is_err() {
                    return;
                }
            }
        });
        Ok(DrivenState { crew, entry, checked: Instant::now(), ticker: ticker.abort_handle() })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            DrivenMsg::Control(control) => control.obey(&state.entry).await,
            DrivenMsg::DriverEnded { role, reason } => Err(format!("driver {role}: {reason}").into()),
            DrivenMsg::Check => {
                // Checks that piled up while the machine was busy are one check: the drivers were
                // not given the time to answer either.
                if state.checked.elapsed() < PING_EVERY / 2 {
                    return Ok(());
                }
                state.checked = Instant::now();
                match state.crew.ping() {
                    Some(role) => Err(format!("driver {role}: makes no progress").into()),
                    None => Ok(()),
                }
            }
        }
    }
}
