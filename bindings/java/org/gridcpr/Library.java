package org.gridcpr;

/** The library behind these classes: found once, by whichever is used first. */
final class Library {
    static {
        String library = System.getProperty("gridcpr.library");
        if (library == null) {
            System.loadLibrary("gridcpr_java");
        } else {
            System.load(library);
        }
    }

    private Library() {}

    /** Does nothing but make sure that it is loaded. */
    static void load() {}

    static long checked(long result) {
        if (result < 0) {
            throw new GridCprException((int) result, error());
        }
        return result;
    }

    static <T> T checked(T result) {
        if (result == null) {
            throw new GridCprException(errorCode(), error());
        }
        return result;
    }

    static native String error();

    static native int errorCode();
}
