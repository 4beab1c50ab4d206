//! The model's tokenizer.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use circuitlab_core::ModelInfo;
use circuitlab_core::error::catch_panic;

use super::digest::sha256;
use crate::{Error, Result};

/// A Hugging Face tokenizer that belongs to a model.
pub struct Tokenizer {
    path: PathBuf,
    /// None where the file is not there, which matters once there is text to encode.
    inner: Option<tokenizers::Tokenizer>,
    sha256: Option<String>,
    special: BTreeSet<u32>,
    vocabulary: usize,
    model: String,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.path).field("sha256", &self.sha256).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, or the one in a folder, and checks that its tokens are the model's.
    ///
    /// # Errors
    /// A file that is not there or is no tokenizer, and a vocabulary larger than the model's.
    pub fn load(path: &Path, model: &ModelInfo) -> Result<Self> {
        let path = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
        let bytes = fs::read(&path).map_err(circuitlab_core::Error::io("read", &path))?;
        let mut inner = guarded(&path, || tokenizers::Tokenizer::from_bytes(&bytes))?;
        // A tokenizer.json may ask for contexts of its own; documents are cut here.
        guarded(&path, || inner.with_truncation(None).map(|_| ()))?;
        inner.with_padding(None);
        let added = inner.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).chain(model.bos).chain(model.eos).collect();
        // Added tokens may lie outside the model: Gemma 3's tokenizer has an image token that its text models lack.
        let largest = inner.get_vocab(false).into_values().max();
        let sha256 = Some(sha256(&bytes));
        let tokenizer = Self { path, sha256, special, vocabulary: model.vocabulary, model: model.name.clone(), inner: Some(inner) };
        largest.map_or(Ok(()), |largest| tokenizer.check(largest)).map(|()| tokenizer)
    }

    /// The same, but a file that is not there is an error only once there is text to encode: documents may be tokens already.
    ///
    /// # Errors
    /// As for [`load`](Self::load), but for a file that is not there.
    pub fn load_if_there(path: &Path, model: &ModelInfo) -> Result<Self> {
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
        if file.exists() {
            return Self::load(path, model);
        }
        let special = model.bos.into_iter().chain(model.eos).collect();
        Ok(Self { path: file, sha256: None, special, vocabulary: model.vocabulary, model: model.name.clone(), inner: None })
    }

    fn inner(&self) -> Result<&tokenizers::Tokenizer> {
        self.inner.as_ref().ok_or_else(|| {
            let gone = std::io::Error::from(std::io::ErrorKind::NotFound);
            circuitlab_core::Error::io("read", &self.path)(gone).into()
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The SHA-256 of the file; none where there is no file.
    pub fn sha256(&self) -> Option<&str> {
        self.sha256.as_deref()
    }

    /// Whether a token is special: BOS, EOS, or marked so in the tokenizer.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// All special tokens, in order.
    pub fn special(&self) -> impl Iterator<Item = u32> {
        self.special.iter().copied()
    }

    /// The tokens of a text, with no special ones added.
    ///
    /// # Errors
    /// Text that the tokenizer refuses, and tokens that the model does not know.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let inner = self.inner()?;
        let encoding = guarded(&self.path, || inner.encode_fast(text, false))?;
        self.checked(encoding.get_ids().to_vec())
    }

    /// The tokens of many texts, which are encoded at the same time.
    ///
    /// # Errors
    /// As for [`encode`](Self::encode).
    pub fn encode_all(&self, texts: Vec<String>) -> Result<Vec<Vec<u32>>> {
        let inner = self.inner()?;
        let encodings = guarded(&self.path, || inner.encode_batch_fast(texts, false))?;
        encodings.iter().map(|encoding| self.checked(encoding.get_ids().to_vec())).collect()
    }

    /// The text of tokens, special ones included.
    ///
    /// # Errors
    /// Tokens that the tokenizer does not know.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let inner = self.inner()?;
        guarded(&self.path, || inner.decode(ids, false))
    }

    /// The text of each token after the ones before it, special ones included: a character of several tokens is the last one's, and a
    /// beginning of one that does not come to its end is what [`decode`](Self::decode) makes of it.
    ///
    /// # Errors
    /// Tokens that the tokenizer does not know.
    pub fn pieces(&self, ids: &[u32]) -> Result<Vec<String>> {
        let inner = self.inner()?;
        guarded(&self.path, || {
            let mut stream = inner.decode_stream(false);
            ids.iter().map(|id| Ok(stream.step(*id)?.unwrap_or_default())).collect()
        })
    }

    /// The same tokens, if the model knows them all; `path` is the file that they are from.
    ///
    /// # Errors
    /// Tokens that the model does not know.
    pub fn known(&self, ids: Vec<u32>, path: &Path) -> Result<Vec<u32>> {
        match ids.iter().max() {
            Some(largest) if *largest as usize >= self.vocabulary => {
                let message = format!("it has the token {largest}; the model `{}` knows {} tokens", self.model, self.vocabulary);
                Err(circuitlab_core::Error::format(path, message).into())
            }
            _ => Ok(ids),
        }
    }

    fn checked(&self, ids: Vec<u32>) -> Result<Vec<u32>> {
        ids.iter().max().map_or(Ok(()), |largest| self.check(*largest)).map(|()| ids)
    }

    fn check(&self, id: u32) -> Result<()> {
        if (id as usize) < self.vocabulary {
            return Ok(());
        }
        let message = format!(
            "it does not belong to the model `{}`: it has the token {id}, and the model knows {} tokens",
            self.model, self.vocabulary
        );
        Err(Error::Tokenizer { path: self.path.clone(), message })
    }
}

/// Calls into the library, whose errors are boxed and whose panics must not be ours.
fn guarded<T>(path: &Path, body: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    catch_panic(&format!("tokenizer `{}`", path.display()), || {
        body().map_err(|error| {
            let text = error.to_string();
            Error::Tokenizer { path: path.to_path_buf(), message: text.lines().next().unwrap_or("no message").to_owned() }
        })
    })
}
