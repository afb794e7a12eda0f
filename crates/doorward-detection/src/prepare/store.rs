//! The place of an artifact, as whoever keeps it offers it.

/// A reason for which a place cannot be read or written.
pub type StoreError = Box<dyn std::error::Error + Send + Sync>;

/// A place for one artifact.
pub trait Store {
    /// The place, for people.
    fn name(&self) -> String;

    /// The bytes that are there; `None` where nothing is. Fails where that cannot be told.
    fn read(&self) -> Result<Option<Vec<u8>>, StoreError>;

    /// Fails where [`Store::write`] would, as far as that is known before there is something to
    /// write.
    fn check_writable(&self) -> Result<(), StoreError>;

    /// Puts bytes there, whole or not at all. Fails where they cannot be put.
    fn write(&self, bytes: &[u8]) -> Result<(), StoreError>;
}
