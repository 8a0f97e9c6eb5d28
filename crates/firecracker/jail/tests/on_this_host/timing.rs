//! What a jail costs. The bounds are wide: other tests run beside these.

use std::time::{Duration, Instant};

use crate::support::{Host, answers, launch, name, remove, spec};

fn median(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], *times.last().unwrap())
}

pub(crate) async fn a_jail_costs_little(host: &Host) {
    let jails = host.open().await;
    let (mut made, mut started, mut answered, mut removed) = (vec![], vec![], vec![], vec![]);
    for round in 0..20 {
        let incarnation = format!("inc_{round}");
        let begun = Instant::now();
        let jail = jails.create(&name(&incarnation), spec()).await.unwrap();
        made.push(begun.elapsed());
        let begun = Instant::now();
        let vmm = jail.start(launch()).await.unwrap();
        started.push(begun.elapsed());
        answers(&jail, &vmm).await;
        answered.push(begun.elapsed());
        let begun = Instant::now();
        remove(&jails, &incarnation).await;
        removed.push(begun.elapsed());
    }
    let all = [("create", made), ("start", started), ("start to answer", answered), ("remove", removed)];
    for (what, times) in all {
        let (half, most) = median(times);
        println!("{what}: median {half:.1?}, at most {most:.1?}");
        assert!(half < Duration::from_millis(500), "{what}");
    }
}

pub(crate) async fn twenty_jails_at_once(host: &Host) {
    let jails = host.open().await;
    let tasks: Vec<_> = (0..20)
        .map(|index| {
            let jails = jails.clone();
            tokio::spawn(async move {
                let begun = Instant::now();
                let jail = jails.create(&name(&format!("inc_{index}")), spec()).await.unwrap();
                let vmm = jail.start(launch()).await.unwrap();
                let started = begun.elapsed();
                answers(&jail, &vmm).await;
                (started, begun.elapsed(), jail.slot().user)
            })
        })
        .collect();
    let (mut started, mut answered) = (vec![], vec![]);
    let mut users = std::collections::BTreeSet::new();
    for task in tasks {
        let (start, answer, user) = task.await.unwrap();
        started.push(start);
        answered.push(answer);
        assert!(users.insert(user));
    }
    for (what, times) in [("create and start, 20 at once", started), ("until it answers", answered)] {
        let (half, most) = median(times);
        println!("{what}: median {half:.1?}, at most {most:.1?}");
        assert!(most < Duration::from_secs(10), "{what}");
    }
    for index in 0..20 {
        remove(&jails, &format!("inc_{index}")).await;
    }
    assert_eq!(host.residue(), Vec::<String>::new());
}
