//! Why an operation failed.

use crate::group::Inner;
use crate::presence::{Answer, Place, ask, tell};
use crate::store::first_line;

/// More findings than these say nothing new.
const MOST: usize = 4;

/// What is the matter by the word of another rank, or by the other members' answers, and what the collective itself saw.
pub(crate) fn cause(group: &Inner, call: u64, what: &str, text: &str) -> String {
    let seen = plain(text, group.limits.longest.as_secs_f64());
    let found = if let Some(told) = group.told() {
        told
    } else {
        let found = findings(group, call, what);
        // Somebody may have been quicker, and seen what came first.
        let Some(found) = group.told().or(found) else { return seen };
        let others: Vec<Place> =
            group.places.iter().copied().enumerate().filter(|(rank, _)| *rank != group.world.rank).map(|(_, place)| place).collect();
        tell(&others, &format!("{found}, says rank {}", group.world.rank));
        found
    };
    format!("{found}; {seen}")
}

/// What is wrong with the other members; nothing where they all wait as this one does.
fn findings(group: &Inner, call: u64, what: &str) -> Option<String> {
    let others: Vec<usize> = group.members.iter().copied().filter(|rank| *rank != group.world.rank).collect();
    let places: Vec<Place> = others.iter().filter_map(|rank| group.places.get(*rank).copied()).collect();
    let mut found: Vec<(u8, String)> =
        others.iter().zip(ask(&places, &group.name)).filter_map(|(rank, answer)| finding(group, *rank, answer, call, what)).collect();
    // Those who are gone or hang are why others are late.
    found.sort_by_key(|(order, _)| *order);
    let worst = found.first().map(|(order, _)| *order)?;
    let mut texts: Vec<String> = found.into_iter().filter(|(order, _)| *order == worst).map(|(_, text)| text).collect();
    let more = texts.len().saturating_sub(MOST);
    texts.truncate(MOST);
    if more > 0 {
        texts.push(format!("so it is with {more} more"));
    }
    Some(texts.join("; "))
}

/// What is wrong with a rank, and how near that is to the cause; nothing where it is as far as this one.
fn finding(group: &Inner, rank: usize, answer: Answer, call: u64, what: &str) -> Option<(u8, String)> {
    let whom = group.address(rank).map_or_else(|| format!("rank {rank}"), |address| format!("rank {rank} ({address})"));
    match answer {
        Answer::Gone => Some((0, format!("{whom} is gone"))),
        Answer::Silent => Some((1, format!("{whom} does not answer: it hangs, or is cut off"))),
        Answer::At(None) => Some((3, format!("{whom} is in no operation of the group, or has left it"))),
        Answer::At(Some(at)) if at.begun == call && at.what != what => {
            Some((2, format!("{whom} has `{}` as that operation; expected all ranks to do the same", at.what)))
        }
        Answer::At(Some(at)) if at.begun < call => {
            let state = if at.ended { "and is elsewhere" } else { "and is still in it" };
            Some((3, format!("{whom} has come to operation {} only, {}, {state}", at.begun, at.what)))
        }
        Answer::At(Some(_)) => None,
    }
}

/// Gloo's own words, without the place in its sources.
fn plain(text: &str, limit: f64) -> String {
    let line = first_line(text);
    let line = if line.starts_with('[') && line.contains(".cc:") { line.split_once("] ").map_or(line, |(_, rest)| rest) } else { line };
    let lower = line.to_lowercase();
    if lower.contains("timed out") || lower.contains("timeout") { format!("no answer within {limit} s") } else { line.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_sources_are_left_out() {
        let closed = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:33";
        assert_eq!(plain(closed, 3.0), "Connection closed by peer [127.0.0.1]:33");
        let late = "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1500ms for recv operation\nmore";
        assert_eq!(plain(late, 1.5), "no answer within 1.5 s");
        assert_eq!(plain("Operation timed out!", 2.0), "no answer within 2 s");
        assert_eq!(plain("[a] b", 2.0), "[a] b");
    }
}
