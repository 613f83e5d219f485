//! Goal: whatever way a child ends, its supervisor brings it back, and only it.
//! Method: a supervisor under test policy with children that die on command; the registry tells.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use mwb_actors::channel::BatchQueue;
use mwb_actors::driver::{Crew, Drive, DriverError};
use mwb_actors::registry::{ActorState, Fault, Registry};
use mwb_actors::supervisor::{ChildSpec, Plan, Policy, Supervisor, SupervisorMsg, Tree};
use ractor::ActorRef;

/// A driver that moves numbers from one queue to another and refuses to start while `refuse` counts.
struct Mover;

#[derive(Clone)]
struct Lent {
    input: BatchQueue<u32>,
    output: BatchQueue<u32>,
    refuse: Arc<AtomicU32>,
}

impl Drive for Mover {
    type Lent = Lent;

    fn launch(lent: &Lent, crew: &mut Crew) -> Result<(), DriverError> {
        let still = lent.refuse.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        if still.is_ok() {
            return Err(DriverError::Failed("not yet".to_owned()));
        }
        let lent = lent.clone();
        crew.launch("work", move |pulse| async move {
            loop {
                pulse.beat().await?;
                while let Some(item) = lent.input.pop() {
                    pulse.count_handled(1);
                    let _ = lent.output.try_push(item);
                }
                tokio::select! {
                    () = lent.input.wait() => {}
                    () = pulse.asked() => {}
                }
            }
        });
        Ok(())
    }
}

struct Bed {
    registry: Arc<Registry>,
    plan: Arc<Plan>,
    lent: Lent,
    root: ActorRef<SupervisorMsg>,
}

static BEDS: AtomicU32 = AtomicU32::new(0);

async fn bed(policy: Policy) -> Bed {
    let lent =
        Lent { input: BatchQueue::new(16), output: BatchQueue::new(16), refuse: Arc::new(AtomicU32::new(0)) };
    let inner = Plan::new([
        ChildSpec::driven::<Mover>("mover", lent.clone()),
        ChildSpec::driven::<Mover>(
            "sibling",
            Lent { input: BatchQueue::new(1), output: BatchQueue::new(1), ..lent.clone() },
        ),
    ]);
    let plan = Plan::new([ChildSpec::supervisor("group", Arc::clone(&inner), policy)]);
    let registry = Registry::new();
    let prefix = format!("supervision-{}", BEDS.fetch_add(1, Ordering::Relaxed));
    let tree = Arc::new(Tree { prefix, registry: Arc::clone(&registry) });
    let (root, _) = Supervisor::spawn_root(plan, tree, policy).await.expect("root");
    let bed = Bed { registry, plan: inner, lent, root };
    bed.until("all run", || bed.running("group/mover") && bed.running("group/sibling")).await;
    bed
}

impl Bed {
    async fn until(&self, what: &str, done: impl Fn() -> bool) {
        let begin = Instant::now();
        while !done() {
            assert!(begin.elapsed() < Duration::from_secs(15), "{what}: {:#?}", self.registry.snapshot());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn running(&self, name: &str) -> bool {
        self.registry.find(name).is_some_and(|entry| entry.state() == ActorState::Running)
    }

    fn restarts(&self, name: &str) -> u64 {
        self.registry.find(name).map_or(0, |entry| entry.restarts())
    }

    async fn works(&self) {
        self.lent.input.try_push(7).expect("room");
        tokio::time::timeout(Duration::from_secs(2), self.lent.output.wait()).await.expect("moved");
        assert_eq!(self.lent.output.pop(), Some(7));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_to_die_is_survived() {
    let bed = bed(Policy::default()).await;
    let mut expected = 0;
    // What waits in a queue while its reader is dead is handled by the next incarnation.
    for target in ["group/mover", "group/mover/work"] {
        for (fault, within) in [
            (Fault::Panic, Duration::from_secs(1)),
            (Fault::Error, Duration::from_secs(1)),
            (Fault::Hang, Duration::from_secs(3)),
        ] {
            let begin = Instant::now();
            assert!(bed.registry.inject(target, fault), "{target} takes faults");
            expected += 1;
            bed.until("restarted", || bed.restarts("group/mover") == expected && bed.running("group/mover"))
                .await;
            assert!(begin.elapsed() < within, "{target} {fault:?} took {:?}", begin.elapsed());
            bed.works().await;
        }
    }
    let mover = bed.registry.find("group/mover").expect("known");
    assert_eq!(mover.incarnation(), expected + 1);
    assert!(mover.last_failure().is_some());
    assert_eq!(bed.restarts("group/sibling"), 0, "siblings are left alone");
    assert_eq!(bed.restarts("group"), 0);
    bed.root.stop_and_wait(None, None).await.expect("stops");
    assert!(bed.registry.snapshot().iter().all(|row| row.state != ActorState::Restarting));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_supervisor_returns_with_its_children() {
    let bed = bed(Policy::default()).await;
    for fault in [Fault::Panic, Fault::Error] {
        let before = bed.restarts("group/mover");
        assert!(bed.registry.inject("group", fault));
        bed.until("children are back", || {
            bed.restarts("group/mover") > before && bed.running("group/mover") && bed.running("group/sibling")
        })
        .await;
        bed.works().await;
    }
    assert_eq!(bed.restarts("group"), 2);
    bed.root.stop_and_wait(None, None).await.expect("stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_starts_are_retried_with_backoff_then_parked_and_still_retried() {
    let policy = Policy {
        delay_min: Duration::from_millis(10),
        delay_max: Duration::from_millis(80),
        park_after: 5,
        park_retry: Duration::from_millis(400),
        ..Policy::default()
    };
    let bed = bed(policy).await;
    bed.lent.refuse.store(7, Ordering::Relaxed);
    let begin = Instant::now();
    assert!(bed.registry.inject("group/mover", Fault::Panic));
    bed.until("parked", || bed.registry.find("group/mover").is_some_and(|e| e.state() == ActorState::Parked))
        .await;
    // 10 + 20 + 40 + 80 + 80 ms, each a quarter less at best.
    assert!(begin.elapsed() >= Duration::from_millis(170), "backoff grows: {:?}", begin.elapsed());
    assert!(bed.running("group/sibling"));
    bed.until("returns from parking", || bed.running("group/mover")).await;
    assert!(begin.elapsed() >= Duration::from_millis(470), "parked for a while: {:?}", begin.elapsed());
    bed.works().await;
    bed.root.stop_and_wait(None, None).await.expect("stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn children_come_and_go_with_the_plan() {
    let bed = bed(Policy::default()).await;
    let extra = Lent { input: BatchQueue::new(1), output: BatchQueue::new(1), ..bed.lent.clone() };
    bed.plan.add(ChildSpec::driven::<Mover>("extra", extra.clone()));
    bed.until("the new child runs", || bed.running("group/extra")).await;
    bed.plan.remove("extra");
    bed.until("the removed child is forgotten", || bed.registry.find("group/extra").is_none()).await;
    extra.input.try_push(1).expect("room");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(extra.output.pop(), None, "its driver has gone too");
    bed.works().await;
    bed.root.stop_and_wait(None, None).await.expect("stops");
}
