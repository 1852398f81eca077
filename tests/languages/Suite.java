import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.DoubleBuffer;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.nio.LongBuffer;
import java.nio.file.Files;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import org.gridcpr.Checkpoint;
import org.gridcpr.Generation;
import org.gridcpr.GridCprException;
import org.gridcpr.Job;
import org.gridcpr.Notice;

/** The cases of suite.c in Java. */
public final class Suite {
    private final LongBuffer step = Checkpoint.longs(1);
    private final DoubleBuffer field = Checkpoint.doubles(1000);
    private final DoubleBuffer grid = Checkpoint.doubles(12);
    private final FloatBuffer spread = Checkpoint.bytes(13 * Float.BYTES).asFloatBuffer();
    private final IntBuffer counts = Checkpoint.ints(7);

    private Suite(int seed) {
        step.put(0, seed);
        for (int i = 0; i < 1000; i++) {
            field.put(i, seed + i * 0.5);
        }
        for (int i = 0; i < 3; i++) {
            for (int j = 0; j < 4; j++) {
                grid.put(j * 3 + i, seed + 10 * i + j);
            }
        }
        for (int k = 0; k < 13; k++) {
            spread.put(k, k % 3 != 0 ? -1 : seed + k / 3);
        }
        for (int i = 0; i < 7; i++) {
            counts.put(i, seed * i);
        }
    }

    private void protect(Checkpoint app) {
        app.protectScalar("step", step);
        app.protect("field", field);
        app.protect("grid", grid, Checkpoint.Order.FORTRAN, 3, 4);
        app.protectStrided("spread", spread, new long[] {5}, new long[] {3});
        app.protect("counts", counts);
    }

    private boolean same(Suite other) {
        return step.equals(other.step) && field.equals(other.field) && grid.equals(other.grid)
                && spread.equals(other.spread) && counts.equals(other.counts);
    }

    private static void writeOne(String base, int seed) {
        try (Checkpoint app = new Checkpoint(base, "suite")) {
            new Suite(seed).protect(app);
            app.setAttribute("writer", "java");
            System.out.println(app.write());
        }
    }

    private static void readOne(String base, int seed) {
        try (Checkpoint app = new Checkpoint(base, "suite")) {
            Suite found = new Suite(-1);
            for (int k = 0; k < 13; k++) {
                found.spread.put(k, -1);
            }
            found.protect(app);
            long generation = app.restore();
            if (!found.same(new Suite(seed))) {
                throw new IllegalStateException("what was read differs");
            }
            System.out.println(generation + " " + app.attribute(generation, "writer"));
        }
    }

    private static void list(String what, Checkpoint app) {
        StringBuilder line = new StringBuilder(what + ":");
        for (Generation one : app.generations()) {
            line.append(" " + one.number() + "/" + one.state().ordinal() + "/" + one.needs());
        }
        System.out.println(line);
    }

    private static int code(Runnable work) {
        try {
            work.run();
        } catch (GridCprException error) {
            return error.code();
        }
        return 0;
    }

    private static Checkpoint.Options how() {
        return new Checkpoint.Options();
    }

    private static void cases(String base) throws IOException, InterruptedException {
        LongBuffer step = Checkpoint.longs(1);
        try (Checkpoint app = new Checkpoint(base, "increments", how().sequence("FIi"))) {
            ByteBuffer big = Checkpoint.bytes(3 << 20);
            app.protect("big", big);
            for (int i = 0; i < 3; i++) {
                big.put(i << 20, (byte) (i + 1));
                app.write();
            }
            list("increments", app);
            big.put(0, new byte[big.capacity()]);
            app.restore();
            System.out.println("restored: " + big.get(0) + " " + big.get(1 << 20) + " " + big.get(2 << 20));
            System.out.println("needed: " + code(() -> app.free(1)));
        }
        try (Checkpoint app = new Checkpoint(base, "keep", how().keep(2))) {
            app.protectScalar("step", step);
            for (int i = 1; i <= 4; i++) {
                app.write();
            }
            list("kept", app);
        }
        try (Checkpoint app = new Checkpoint(base, "expire", how().lifetime(1))) {
            app.protectScalar("step", step);
            app.write();
            Thread.sleep(1200);
            app.write();
            list("lives", app);
        }
        try (Checkpoint app = new Checkpoint(base, "metadata")) {
            app.protectScalar("step", step);
            for (int i = 1; i <= 3; i++) {
                step.put(0, i);
                app.setAttribute("phase", i == 2 ? "spin-up" : "run");
                app.write();
            }
            List<Generation> found = app.find("phase", "run");
            System.out.println("found: " + found.size() + ", the last " + found.get(found.size() - 1).number());
            app.update(3, "phase", "done");
            app.update(3, 60);
            System.out.println("updated: " + app.attribute(3, "phase") + " " + app.generations().get(2).lifetime());
            ByteBuffer piece = ByteBuffer.wrap(app.read(2, 0, "step", 0, 8)).order(ByteOrder.nativeOrder());
            System.out.println("read: " + piece.getLong());
            app.validate(2);
            app.free(2);
            list("freed", app);
            app.transfer(3, base + "/there");
            app.forget();
            list("forgotten", app);
        }
        try (Checkpoint app = new Checkpoint(base + "/there", "metadata")) {
            app.protectScalar("step", step);
            step.put(0, 0);
            app.restore();
            System.out.println("transferred: " + step.get(0));
        }
        try (Checkpoint one = new Checkpoint(base, "ranks", how().rank(0, 2).session("a"));
                Checkpoint two = new Checkpoint(base, "ranks", how().rank(1, 2).session("a"))) {
            one.protectScalar("step", step);
            two.protectScalar("step", step);
            step.put(0, 10);
            one.write();
            list("half", one);
            step.put(0, 11);
            two.write();
            list("whole", one);
            one.restore();
            System.out.println("rank 0: " + step.get(0));
            two.restore();
            System.out.println("rank 1: " + step.get(0));
        }
        try (Checkpoint app = new Checkpoint(base, "background")) {
            app.protectScalar("step", step);
            step.put(0, 7);
            app.prepare();
            app.writeBegin();
            step.put(0, 8);
            long generation = app.await();
            long[] bytes = app.progress();
            app.restore();
            System.out.println(
                    "background: " + generation + " 0 " + bytes[0] + " of " + bytes[1] + ", " + step.get(0));
        }
        try (Checkpoint app = new Checkpoint(base, "files")) {
            app.protectScalar("step", step);
            Files.writeString(app.route("notes.txt"), "of its own");
            System.out.println("file: " + Files.readString(app.file(app.write(), "notes.txt")));
        }
        try (Checkpoint app = new Checkpoint(base, "wrong")) {
            app.protectScalar("step", step);
            System.out.println("none: " + app.restore());
            app.write();
            app.protectScalar("step", Checkpoint.ints(1));
            System.out.println("another type: " + code(app::restore));
            System.out.println("no such generation: " + code(() -> app.validate(9)));
            System.out.println("open twice: " + code(() -> new Checkpoint(base, "wrong").close()));
        }
    }

    private static void job() throws InterruptedException {
        CountDownLatch told = new CountDownLatch(1);
        try (Job.Registration callback = Job.register(notice -> {
            String reason = notice.reason().isEmpty() ? "" : ": " + notice.reason();
            System.out.println(notice.event().name().toLowerCase() + reason);
            if (notice.event() == Notice.Event.TOLD) {
                told.countDown();
            }
        })) {
            try (Job.Section outer = Job.enter();
                    Job.Section inner = Job.enter()) {
                // Nothing is torn here.
            }
            Job.filePolicy("*.txt", "nocheck,nottruncate");
            boolean again = Job.checkpoint(false);
            try (Job.Section afterCallbacks = Job.enter()) {
                String restarted = Job.lastRestart()
                        .map(r -> "restarted " + r.times() + " " + r.generation() + " " + r.image() + " " + r.job())
                        .orElse("continued " + Job.restarted() + " 0");
                System.out.println(again == restarted.startsWith("restarted") ? restarted : "it does not know");
            }
            told.await();
        }
        System.out.println("end");
    }

    public static void main(String[] words) throws IOException, InterruptedException {
        if (words.length == 3 && words[0].equals("write")) {
            writeOne(words[1], Integer.parseInt(words[2]));
        } else if (words.length == 3 && words[0].equals("read")) {
            readOne(words[1], Integer.parseInt(words[2]));
        } else if (words.length == 2 && words[0].equals("cases")) {
            cases(words[1]);
        } else if (words.length == 1 && words[0].equals("job")) {
            job();
        } else {
            System.exit(64);
        }
    }
}
