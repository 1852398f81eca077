package org.gridcpr;

import java.util.Optional;

/** The part that a program takes in checkpoints of the whole program, by {@code cpr} or by itself. */
public final class Job {
    private static final int READY = 0;
    private static final int LATER = 1;
    private static final int REFUSE = 2;

    static {
        Library.load();
    }

    private Job() {}

    /** A section in which no checkpoint is taken; to be closed by the thread that entered it. */
    public static final class Section implements AutoCloseable {
        private boolean left;

        private Section() {}

        /** Leaves the section. Closing twice does nothing. */
        @Override
        public void close() {
            if (!left) {
                left = true;
                Library.checked(unblock());
            }
        }
    }

    /** A callback that is registered until it is closed. */
    public static final class Registration implements AutoCloseable {
        private int number;

        private Registration(int number) {
            this.number = number;
        }

        /** Removes it; a call that runs now runs to its end. Closing twice does nothing. */
        @Override
        public void close() {
            int closing = number;
            number = 0;
            if (closing != 0) {
                Library.checked(unregister(closing));
            }
        }
    }

    /**
     * Enters a section in which no checkpoint is taken. Sections nest, and belong to a thread.
     *
     * @return the section
     */
    public static Section enter() {
        Library.checked(block());
        return new Section();
    }

    /**
     * Registers a callback. Before a checkpoint the newest is called first, afterwards the oldest.
     *
     * @param callback what is called
     * @return what removes it
     */
    public static Registration register(Callback callback) {
        return new Registration((int) Library.checked(registerNative(callback)));
    }

    /**
     * Has the whole job checkpointed that the program runs in.
     *
     * @param stop whether the job ends with that, and goes on when it is restarted
     * @return whether this is a program restarted from the image
     */
    public static boolean checkpoint(boolean stop) {
        return Library.checked(checkpointNative(stop)) == 1;
    }

    /**
     * How often the program was restarted from an image.
     *
     * @return how often
     */
    public static int restarted() {
        return (int) Library.checked(restartedNative());
    }

    /**
     * Says how checkpoints of the job that the program runs in treat files, as {@code cpr run --file} does.
     *
     * @param pattern which files; taken below the working directory where it does not begin with a slash
     * @param policy what becomes of them, such as {@code append}
     */
    public static void filePolicy(String pattern, String policy) {
        Library.checked(filePolicyNative(pattern, policy));
    }

    /**
     * What is known of the newest restart.
     *
     * @return the restart, or nothing in a program that was not restarted
     */
    public static Optional<Restart> lastRestart() {
        int times = restarted();
        if (times == 0) {
            return Optional.empty();
        }
        long generation = Library.checked(generationNative());
        return Optional.of(new Restart(times, generation, restartText(true), restartText(false)));
    }

    /**
     * Does what the command {@code cpr} does with these arguments.
     *
     * @param arguments those of the command
     * @return its result, JSON
     */
    public static String command(String... arguments) {
        return Library.checked(commandNative(arguments));
    }

    /** Called by the library. */
    @SuppressWarnings("unused")
    private static int run(
            Callback callback, int event, boolean failed, int restarts, long checkpoint, String reason) {
        try {
            callback.call(new Notice(Notice.Event.values()[event - 1], failed, restarts, checkpoint, reason));
            return READY;
        } catch (Callback.Later later) {
            explain(String.valueOf(later.getMessage()));
            return LATER;
        } catch (Throwable thrown) {
            explain(String.valueOf(thrown.getMessage()));
            return REFUSE;
        }
    }

    private static native int block();

    private static native int unblock();

    private static native int registerNative(Callback callback);

    private static native int unregister(int number);

    private static native void explain(String reason);

    private static native int checkpointNative(boolean stop);

    private static native int restartedNative();

    private static native int filePolicyNative(String pattern, String policy);

    private static native long generationNative();

    /** The identifier of the image, or the name of the job. */
    private static native String restartText(boolean image);

    private static native String commandNative(String[] arguments);
}
