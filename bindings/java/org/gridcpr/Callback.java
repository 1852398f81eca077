package org.gridcpr;

/** What is called around checkpoints of the whole program, in a thread of the library. */
@FunctionalInterface
public interface Callback {
    /**
     * Gets ready for a checkpoint, or is told how it went. An exception before a checkpoint refuses it, with its text, or
     * puts it off where it is {@link Later}.
     *
     * @param notice what happens
     * @throws Exception if there must be no checkpoint
     */
    void call(Notice notice) throws Exception;

    /** There cannot be a checkpoint just now. */
    final class Later extends Exception {
        private static final long serialVersionUID = 1L;

        /**
         * Makes one.
         *
         * @param why what is in the way
         */
        public Later(String why) {
            super(why);
        }
    }
}
