//! Stop strings.

/// Finds stop strings in text that comes in pieces, and holds back what may become one.
pub(super) struct Stops {
    strings: Vec<String>,
    held: String,
    hit: bool,
    /// The string that ended the answer is shown.
    include: bool,
}

impl Stops {
    pub(super) fn new(strings: Vec<String>, include: bool) -> Self {
        Self { strings, held: String::new(), hit: false, include }
    }

    /// Text that can be shown now: everything before a stop string, or all but an end that may begin one.
    pub(super) fn push(&mut self, text: &str) -> String {
        if self.hit {
            return String::new();
        }
        self.held.push_str(text);
        // The first one to begin; of those that begin together the first one to end.
        let found = self.strings.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop.len()))).min();
        let cut = if let Some((at, len)) = found {
            self.hit = true;
            if self.include { at + len } else { at }
        } else {
            let open = |at: &usize| {
                let end = &self.held[*at..];
                self.strings.iter().any(|stop| stop.starts_with(end))
            };
            self.held.char_indices().map(|(at, _)| at).find(open).unwrap_or(self.held.len())
        };
        let rest = self.held.split_off(cut);
        let shown = std::mem::replace(&mut self.held, rest);
        if self.hit {
            self.held.clear();
        }
        shown
    }

    /// Whether a stop string has come: nothing after it is shown.
    pub(super) fn hit(&self) -> bool {
        self.hit
    }

    /// What was held back: no stop string will come any more.
    pub(super) fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, String, bool) {
        let mut finder = Stops::new(stops.iter().map(|&s| s.to_owned()).collect(), false);
        let shown = pieces.iter().map(|piece| finder.push(piece)).collect();
        (shown, finder.rest(), finder.hit)
    }

    #[test]
    fn without_stops_text_passes_at_once() {
        assert_eq!(run(&[], &["a", "bc"]), (vec!["a".into(), "bc".into()], String::new(), false));
    }

    #[test]
    fn a_stop_over_several_pieces_is_found_and_nothing_of_it_is_shown() {
        let (shown, rest, hit) = run(&["END"], &["one E", "N", "D two"]);
        assert_eq!((shown, rest.as_str(), hit), (vec!["one ".into(), String::new(), String::new()], "", true));
    }

    #[test]
    fn a_false_start_is_shown_when_it_is_known_to_be_one() {
        let (shown, rest, hit) = run(&["END"], &["E", "NX", "é", "E"]);
        assert_eq!(shown, ["", "ENX", "é", ""]);
        assert_eq!((rest.as_str(), hit), ("E", false));
    }

    #[test]
    fn the_earliest_of_several_stops_counts() {
        let (shown, _, hit) = run(&["b", "ab"], &["xxabyy"]);
        assert_eq!((shown, hit), (vec!["xx".into()], true));
    }

    #[test]
    fn a_stop_is_shown_where_that_is_asked_for_and_nothing_after_it() {
        let mut finder = Stops::new(vec!["END".into(), "ENDED".into()], true);
        assert_eq!([finder.push("one EN"), finder.push("DED two")], ["one ", "END"]);
        assert!(finder.hit() && finder.rest().is_empty());
    }
}
