//! SLURM's short form of a list of hosts, such as `node[01-04,07],gpu3`.

/// The first host of the list; nothing where it is no such list.
pub(crate) fn first(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list.trim().chars();
    while let Some(letter) = rest.next() {
        match letter {
            ',' => break,
            '[' => {
                // The first number of the brackets as it is written: zeros in front belong to the name.
                let inside: String = rest.by_ref().take_while(|letter| *letter != ']').collect();
                let number: String = inside.chars().take_while(char::is_ascii_digit).collect();
                let ends = inside.chars().nth(number.len());
                if number.is_empty() || !matches!(ends, None | Some('-' | ',')) {
                    return None;
                }
                host += &number;
            }
            letter if letter.is_ascii_alphanumeric() || "-_.:".contains(letter) => host.push(letter),
            _ => return None,
        }
    }
    (!host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_host_is_found() {
        for (list, want) in [
            ("gpu3", Some("gpu3")),
            ("node[01-04,07],gpu3", Some("node01")),
            ("a-1.lan,b[2-3]", Some("a-1.lan")),
            ("r[1-2]n[003,5]", Some("r1n003")),
            ("n[12]", Some("n12")),
            ("", None),
            (",a", None),
            ("n[]", None),
            ("n[x-y]", None),
            ("n[1x]", None),
            ("a b", None),
        ] {
            assert_eq!(first(list).as_deref(), want, "{list}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            if let Some(host) = first(&text) {
                prop_assert!(!host.is_empty() && !host.contains([',', '[', ']', ' ']));
            }
        }

        #[test]
        fn plain_lists_begin_with_their_first(hosts in proptest::collection::vec("[a-z][a-z0-9-]{0,9}", 1..5)) {
            prop_assert_eq!(first(&hosts.join(",")), Some(hosts[0].clone()));
        }
    }
}
