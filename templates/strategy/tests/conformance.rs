//! The suite that every strategy of circuitlab goes through, the look-up by name, and what strangers and late ranks get.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::thread;

use circuitlab_core::tch::{Kind, Tensor};
use circuitlab_core::{Construct, ParallelismStrategy, Registry, Spec, testing};
use circuitlab_strategy_star::{Star, StarConfig};

/// A port that was free a moment ago.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").to_string()
}

fn config(rank: usize, ranks: usize, address: &str, timeout_seconds: u64) -> StarConfig {
    StarConfig { rank: Some(rank), ranks: Some(ranks), address: Some(address.to_owned()), timeout_seconds }
}

fn star_conforms(ranks: usize) {
    let address = free_address();
    testing::strategy::conforms(ranks, move |rank| {
        let registry = Registry::linked().expect("no name twice");
        let mut spec = Spec::named("star");
        for (key, value) in [("rank", rank.into()), ("ranks", ranks.into()), ("address", address.clone().into())] {
            spec.settings.insert(key.to_owned(), value);
        }
        registry.build::<dyn ParallelismStrategy>(&spec).expect("all ranks are there")
    });
}

#[test]
fn one_rank_conforms() {
    star_conforms(1);
}

#[test]
fn two_ranks_conform() {
    star_conforms(2);
}

#[test]
fn three_ranks_conform() {
    star_conforms(3);
}

/// What every rank of a pair gets, each made and used on a thread of its own.
fn pair(configs: [StarConfig; 2], work: fn(&Star) -> Result<(), circuitlab_core::Error>) -> [String; 2] {
    let ranks = configs.map(|config| thread::spawn(move || config.construct().and_then(|star| work(&star))));
    ranks.map(|rank| rank.join().expect("no panic").map_or_else(|error| error.to_string(), |()| "fine".to_owned()))
}

#[test]
fn one_rank_needs_no_address_and_no_number() {
    let star = StarConfig { ranks: Some(1), ..StarConfig::default() }.construct().expect("nobody to wait for");
    star.barrier().expect("nobody to wait for");
}

#[test]
fn bad_settings_are_named() {
    let message = |config: StarConfig| config.construct().expect_err("refused").to_string();
    assert_eq!(message(config(2, 2, "", 1)), "strategy `star`, key `rank`: rank 2 of 2 ranks; expected a rank below their number");
    for seconds in [0, u64::MAX] {
        let want = format!("strategy `star`, key `timeout_seconds`: expected 1 to 604800, got {seconds}");
        assert_eq!(message(config(0, 2, "", seconds)), want);
    }
    assert!(message(config(0, 2, "nowhere", 1)).starts_with("strategy `star`, rank 0: cannot listen at `nowhere`: "));
}

#[test]
fn a_missing_rank_is_named_after_the_timeout() {
    let hub = config(0, 3, &free_address(), 1).construct().expect_err("alone");
    assert_eq!(hub.to_string(), "strategy `star`, rank 0, handshake with rank 1: no answer in time");
    let address = free_address();
    let other = config(1, 2, &address, 1).construct().expect_err("alone").to_string();
    assert!(other.starts_with(&format!("strategy `star`, rank 1, connecting to `{address}` with rank 0: ")), "{other}");
}

#[test]
fn ranks_of_another_run_are_refused() {
    let address = free_address();
    let [hub, _] = pair([config(0, 2, &address, 5), config(1, 3, &address, 5)], |_| Ok(()));
    assert!(hub.contains(", 1, 3], expected [") && hub.ends_with(", 1, 2]"), "{hub}");
    let [hub, _] = pair([config(0, 2, &address, 5), config(1, 2, &address, 5)], |star| {
        let entries = 2 + star.mesh().data.rank as i64;
        star.reduce_gradients(&mut [Tensor::zeros([entries], (Kind::Float, circuitlab_core::tch::Device::Cpu))])
    });
    assert_eq!(hub, "strategy `star`, rank 0, sum with rank 1: it sends [1, 4, 3], expected [1, 4, 2]");
}

#[test]
fn strangers_and_other_types_are_refused() {
    let address = free_address();
    let hub = config(0, 2, &address, 5);
    let hub = thread::spawn(move || hub.construct().expect_err("a stranger").to_string());
    let mut stranger = loop {
        if let Ok(stream) = TcpStream::connect(&address) {
            break stream;
        }
    };
    stranger.write_all(&[0xff; 64]).expect("the hub listens");
    let message = hub.join().expect("no panic");
    assert!(message.contains("it sends [18446744073709551615, "), "{message}");

    let messages = pair([config(0, 2, &address, 5), config(1, 2, &address, 5)], |star| {
        star.reduce_gradients(&mut [Tensor::zeros([2], (Kind::Int64, circuitlab_core::tch::Device::Cpu))])
    });
    assert_eq!(messages, ["strategy `star`: cannot add up tensors of Int64; expected f32 or f64"; 2]);
}
