//! Plain tables: columns aligned, numbers to the right, nothing else.

use std::fmt::{self, Display, Formatter};

/// A table to be printed.
#[derive(Debug, Clone, Default)]
pub struct Table {
    heads: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these columns.
    pub fn new(heads: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { heads: heads.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) -> &mut Self {
        self.rows.push(cells.into_iter().map(Into::into).collect());
        self
    }

    fn cell(row: &[String], column: usize) -> &str {
        row.get(column).map_or("", String::as_str)
    }

    /// Whether every filled cell of a column begins like a number.
    fn is_numeric(&self, column: usize) -> bool {
        let mut filled = self.rows.iter().map(|row| Self::cell(row, column)).filter(|cell| !cell.is_empty()).peekable();
        filled.peek().is_some() && filled.all(|cell| cell == "-" || starts_like_a_number(cell))
    }
}

fn starts_like_a_number(cell: &str) -> bool {
    let mut chars = cell.trim_start_matches(['-', '+', '~']).chars();
    chars.next().is_some_and(|c| c.is_ascii_digit()) && chars.all(|c| !c.is_ascii_punctuation() || ".,%/-".contains(c))
}

impl Display for Table {
    /// The lines without a line end after the last.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).chain([self.heads.len()]).max().unwrap_or(0);
        let lines = || std::iter::once(&self.heads).chain(&self.rows);
        let width = |column| lines().map(|row| Self::cell(row, column).chars().count()).max().unwrap_or(0);
        let layout: Vec<_> = (0..columns).map(|column| (width(column), self.is_numeric(column))).collect();
        for (i, row) in lines().enumerate() {
            let mut line = String::new();
            for (column, (width, numeric)) in layout.iter().enumerate() {
                let (cell, gap) = (Self::cell(row, column), if column > 0 { "  " } else { "" });
                let missing = " ".repeat(width.saturating_sub(cell.chars().count()));
                line.extend(if *numeric { [gap, &missing, cell] } else { [gap, cell, &missing] });
            }
            write!(f, "{}{}", if i > 0 { "\n" } else { "" }, line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_to_the_right() {
        let mut table = Table::new(["layer", "hook", "l0", "size"]);
        table.row(["0", "blocks.0", "12.5", "1.50 KiB"]).row(["10", "blocks.10", "-", "900 B"]).row(["11"]);
        let expected = "layer  hook         l0      size\n    0  blocks.0   12.5  1.50 KiB\n   10  blocks.10     -     900 B\n   11";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn odd_tables_are_printed_too() {
        assert_eq!(Table::default().to_string(), "");
        let mut table = Table::new(["a"]);
        table.row(["\u{e4}", "more"]).row(Vec::<String>::new());
        assert_eq!(table.to_string(), "a\n\u{e4}  more\n");
    }
}
